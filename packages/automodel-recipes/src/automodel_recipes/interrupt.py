"""Ask a running loop to stop or to save: signals, and a file in the run's directory."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

GO_ON, SAVE = 0, 1
"""What ranks can agree on beside the number of a stop signal, all of which are larger."""

SAVE_FILE = "SAVE"
"""Touch this file in a run's directory and a checkpoint is written after the current step."""

_SAME_SIGNAL_S = 1.0


class StopWait(BaseException):
    """A stop signal came while the process waited; no `Exception`, so that code that skips bad rows lets it pass."""


class StopAgreed(Exception):
    """All ranks have agreed to stop because of a signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopRequest:
    """Remembers the first stop signal; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._owner = os.getpid()
        self._waiting = False
        self._received_at = 0.0

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def receive(self, signal_number: int, _frame: FrameType | None = None) -> None:
        """Signal handler. Forked children (data workers) inherit it and ignore the signal: their parent decides."""
        if os.getpid() != self._owner:
            return
        now = time.monotonic()
        if self.signal_number is not None:
            # Slurm and our launcher may both deliver the same signal: that is one request, not two.
            if signal_number != self.signal_number or now - self._received_at > _SAME_SIGNAL_S:
                os._exit(128 + signal_number)
            return
        self.signal_number, self._received_at = signal_number, now
        if self._waiting:
            self._waiting = False
            raise StopWait

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Surround a wait that a stop signal may break off by `StopWait`; whoever calls discards what it waited for."""
        self._waiting = True
        try:
            if self.signal_number is not None:
                raise StopWait
            yield
        finally:
            self._waiting = False

    def code(self, directory: Path) -> int:
        """What this process asks for: a signal's number, `SAVE` where the file is there (it is removed), `GO_ON`."""
        if self.signal_number is not None:
            return int(self.signal_number)
        with contextlib.suppress(OSError):
            (directory / SAVE_FILE).unlink()
            return SAVE
        return GO_ON


@contextlib.contextmanager
def catch_stop_signals(request: StopRequest) -> Iterator[StopRequest]:
    """Route SIGINT, SIGTERM and SIGUSR1 to ``request``; the previous handlers return on exit.

    Only the main thread can set handlers; elsewhere (a notebook's worker thread) this changes nothing.
    """
    previous = {}
    try:
        for number in STOP_SIGNALS:
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, request.receive)
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Ask a running loop to stop: signals set a flag that the loop polls between steps."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """Remembers the first stop signal; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._owner = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def receive(self, signal_number: int, _frame: FrameType | None = None) -> None:
        """Signal handler. Forked children (data workers) inherit it and ignore the signal: their parent decides."""
        if os.getpid() != self._owner:
            return
        if self.signal_number is not None:
            os._exit(128 + signal_number)
        self.signal_number = signal_number


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

"""Named timers whose readings can be compared across ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

LogOption = Literal["max", "minmax", "all"]


@dataclass
class Timer:
    """Accumulated seconds and number of intervals of one name."""

    seconds: float = 0.0
    count: int = 0
    _started: float | None = None

    def start(self, *, now: float) -> None:
        """Raises: RuntimeError: it is running already."""
        if self._started is not None:
            raise RuntimeError(
                "start() of a timer that is running: intervals of one name do not nest. Call stop() first."
            )
        self._started = now

    def stop(self, *, now: float) -> None:
        """Raises: RuntimeError: it is not running."""
        if self._started is None:
            raise RuntimeError("stop() of a timer that is not running: an interval begins with start(). Call it first.")
        self.seconds += now - self._started
        self.count += 1
        self._started = None

    def reset(self) -> None:
        """Back to zero; an interval that is open is counted from here on by its own ``stop``."""
        self.seconds, self.count = 0.0, 0


class Timers:
    """A set of timers: ``with timers("forward"): ...``.

    Args:
        log_option: what ``elapsed`` reports of the ranks: their ``max``, ``minmax``, or ``all``.
        synchronize: called around every interval so that queued device work falls into it, for example
            ``torch.cuda.synchronize``. It costs a host sync; None measures the host's own time.
        group: process group of the ranks to compare; without one, and without ``torch.distributed``, this rank alone.
    """

    def __init__(
        self,
        *,
        log_option: LogOption = "max",
        synchronize: Callable[[], Any] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if log_option not in ("max", "minmax", "all"):
            raise ValueError(f"log_option={log_option!r}: choose 'max', 'minmax' or 'all'. 'max' is the slowest rank.")
        self.log_option, self.group = log_option, group
        self._synchronize = synchronize or (lambda: None)
        self._timers: dict[str, Timer] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[Timer]:
        """Time the block under ``name``; it counts even where the block raises."""
        self.start(name)
        try:
            yield self._timers[name]
        finally:
            self.stop(name)

    def start(self, name: str) -> None:
        """Open an interval of ``name``."""
        self._synchronize()
        self._timers.setdefault(name, Timer()).start(now=time.perf_counter())

    def stop(self, name: str) -> None:
        """Close the open interval of ``name``."""
        self._synchronize()
        self._timers.setdefault(name, Timer()).stop(now=time.perf_counter())

    def elapsed(self, *, reset: bool = True) -> dict[str, float]:
        """Seconds by name, over the ranks as ``log_option`` says; every rank must call it with the same names.

        Returns: ``{name: seconds}`` for ``max``; ``{name/min, name/max}`` for ``minmax``; ``{name/RANK}`` for ``all``.
        """
        names = sorted(self._timers)
        by_rank = self._gather([self._timers[name].seconds for name in names])
        report: dict[str, float] = {}
        for column, name in enumerate(names):
            values = [float(row[column]) for row in by_rank]
            if self.log_option == "max":
                report[name] = max(values)
            elif self.log_option == "minmax":
                report[f"{name}/min"], report[f"{name}/max"] = min(values), max(values)
            else:
                report.update({f"{name}/{rank}": value for rank, value in enumerate(values)})
        if reset:
            for timer in self._timers.values():
                timer.reset()
        return report

    def _gather(self, seconds: list[float]) -> list[list[float]]:
        if not (dist.is_available() and dist.is_initialized()):
            return [seconds]
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self.group) == "nccl" else "cpu"
        mine = torch.tensor(seconds, dtype=torch.float64, device=device)
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(rows, mine, group=self.group)
        return [row.tolist() for row in rows]

"""Memory of the device and of the host: peaks for the log, and a warning when the host's keeps growing."""

import logging
import resource
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_WARM_UP_ROWS = 10
"""Logged steps before the base line is taken: allocators, caches and workers settle first."""


def peak_memory_gib(device: torch.device) -> float:
    """Peak device memory in GiB; on CPU the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def host_memory_gib() -> float:
    """Resident memory of this process in GiB; its peak where the system does not tell the current value."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_gib(torch.device("cpu"))
    return pages * resource.getpagesize() / 2**30


class HostMemoryWatch:
    """Warns once each time the host's memory has grown by another ``limit_gib`` since the tenth observation."""

    def __init__(self, limit_gib: float) -> None:
        self.limit_gib = limit_gib
        self._seen = 0
        self._base: tuple[int, float] | None = None
        self._next_warning = limit_gib

    def observe(self, step: int, memory_gib: float) -> str | None:
        """The warning that this observation calls for, if any; it is logged too."""
        self._seen += 1
        if self._seen < _WARM_UP_ROWS or self.limit_gib <= 0:
            return None
        if self._base is None:
            self._base = (step, memory_gib)
        first_step, first = self._base
        if memory_gib - first < self._next_warning:
            return None
        self._next_warning = memory_gib - first + self.limit_gib
        rate = 1024 * (memory_gib - first) / max(step - first_step, 1)
        warning = (
            f"host memory grew from {first:.2f} GiB at step {first_step} to {memory_gib:.2f} GiB at step {step}, "
            f"{rate:.1f} MiB a step. Look for lists that the dataset keeps, or lower dataloader.num_workers."
        )
        logger.warning("%s", warning)
        return warning

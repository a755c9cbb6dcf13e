"""Which checkpoints stay: never fewer than one that is complete, never one that is being read."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from automodel_ckpt import layout
from automodel_ckpt.directory import Directory, is_complete, open_directory, ranking, steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keep:
    """The union of what each field keeps; everything else that is complete is deleted after a save."""

    last: int | None = 2
    """The newest ones; at least 1. None: all."""
    best: tuple[str, str] | tuple[str, str, int] | str | None = None
    """``(metric, "min" or "max", count)``; a metric alone means the one lowest."""
    every: int | None = None
    """Steps divisible by this."""
    pinned: tuple[int, ...] = ()
    """These steps."""

    def __post_init__(self) -> None:
        if self.last is not None and (type(self.last) is not int or self.last < 1):
            raise ValueError(f"last={self.last!r}: at least 1 is kept, or None for all.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every!r}: must be >= 1, or None.")
        if self.best is not None and self.best_rule()[1] not in ("min", "max"):
            raise ValueError(f"best={self.best!r}: give (metric, 'min' or 'max', count).")

    def best_rule(self) -> tuple[str, str, int]:
        """Metric, mode and count of ``best``."""
        assert self.best is not None
        if isinstance(self.best, str):
            return self.best, "min", 1
        return self.best[0], self.best[1], self.best[2] if len(self.best) == 3 else 1


def collect_garbage(directory: Directory, keep: Keep) -> list[str]:
    """Delete complete checkpoints that ``keep`` does not name; return their names. For the holder of the lease.

    Incomplete directories with a checkpoint's name are left for a person to look at: nothing here makes them.
    """
    complete = [step for step in steps(directory) if is_complete(directory, layout.step_name(step))]
    kept = set(keep.pinned)
    if keep.best is not None:
        metric, mode, count = keep.best_rule()
        ranked = ranking(directory, metric, mode)
        kept |= set(ranked[:count])
        if ranked:
            directory.hint(layout.BEST, ranked[0])
    if keep.last is None:
        return []
    kept |= set(complete[-keep.last :])
    if keep.every is not None:
        kept |= {step for step in complete if step % keep.every == 0}
    return _delete(directory, [step for step in complete if step not in kept])


def _delete(directory: Directory, unwanted: list[int]) -> list[str]:
    deleted = []
    for step in unwanted:
        name = layout.step_name(step)
        if directory.in_use(name):
            logger.info("%s is being read and stays for this time", name)
            continue
        directory.discard(name)
        deleted.append(name)
    return deleted


def gc(root: str | os.PathLike | Directory, *, keep: Keep | None = None) -> list[str]:
    """Take the lease of ``root``, delete the leftovers of dead runs and what ``keep`` does not name.

    Returns: names of the checkpoints that were deleted.
    Raises: LeaseHeld: a live run writes there.
    """
    directory = open_directory(root)
    directory.acquire()
    directory.sweep()
    return collect_garbage(directory, keep or Keep())

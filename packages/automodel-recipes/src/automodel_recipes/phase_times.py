"""Where a run's time goes: seconds of each phase, which ``monitoring.phase_times`` adds to the rows of steps."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from automodel_core.config import ConfigNode

DATA, FORWARD_BACKWARD, OPTIMIZER = "data", "forward_backward", "optimizer"
EVAL, CHECKPOINT = "eval", "checkpoint"


class PhaseTimes:
    """Times the phases of a run on every rank, and tells those of the slowest one.

    On a GPU each phase waits for the device's queued work, so that it is charged for what it started; that makes steps
    a little slower.
    """

    def __init__(self, device: torch.device) -> None:
        from automodel_core.training import Timers

        self._timers = Timers(synchronize=torch.cuda.synchronize if device.type == "cuda" else None)
        self._totals: Counter[str] = Counter()

    def __call__(self, phase: str) -> AbstractContextManager[Any]:
        """Within the block, time goes to ``phase``."""
        return self._timers(phase)

    def row(self) -> dict[str, float]:
        """``PHASE_s``: seconds since the row before; every rank calls it."""
        elapsed = self._timers.elapsed()
        self._totals.update(elapsed)
        return {f"{phase}_s": round(seconds, 4) for phase, seconds in elapsed.items()}

    def totals(self) -> dict[str, float]:
        """Seconds of each phase since the start or the resume; every rank calls it."""
        self.row()
        return {phase: round(seconds, 3) for phase, seconds in self._totals.items()}


class NoPhaseTimes:
    """Stands where ``monitoring.phase_times`` is not set."""

    def __call__(self, phase: str) -> AbstractContextManager[Any]:
        """Nothing."""
        return nullcontext()

    def row(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def totals(self) -> dict[str, float]:
        """Nothing."""
        return {}


def build_phase_times(config: ConfigNode, device: torch.device) -> PhaseTimes | NoPhaseTimes:
    """What ``monitoring.phase_times`` asks for."""
    return PhaseTimes(device) if config.get("monitoring.phase_times", False) else NoPhaseTimes()

"""Follow one validation metric: which value is the best so far, and whether it still improves."""

import math
from dataclasses import dataclass
from typing import Any

from automodel_recipes.errors import UnusableInputError

_HIGHER_IS_BETTER = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Observation:
    """What one validation said about the metric."""

    improved: bool
    stop_reason: str | None = None


class EarlyStopping:
    """Ends a run whose metric has stopped improving.

    Args:
        metric: ``SET/NAME`` as the trackers call it: ``val/loss``, ``val/token_accuracy``, ``val_math/perplexity``.
        mode: ``min`` or ``max``; by default ``max`` for accuracies and matches, else ``min``.
        patience: validations in a row without improvement that end the run; None never ends it.
        min_delta: how much better a value must be to count.
    """

    def __init__(
        self,
        *,
        metric: str = "val/loss",
        mode: str | None = None,
        patience: int | None = 3,
        min_delta: float = 0.0,
    ) -> None:
        if mode not in (None, "min", "max"):
            raise UnusableInputError(f"early_stopping.mode={mode!r}: allowed are min and max.")
        if (patience is not None and patience < 1) or min_delta < 0:
            raise UnusableInputError(
                f"early_stopping.patience={patience}, min_delta={min_delta}: patience must be >= 1 and min_delta >= 0."
            )
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.mode = mode or ("max" if is_higher_better(metric) else "min")
        self.best: float | None = None
        self.best_step: int | None = None
        self.num_without = 0

    def observe(self, step: int, metrics: dict[str, float]) -> Observation:
        """Judge a validation.

        Args:
            step: the optimizer step that was measured.
            metrics: every metric of every validation set by its full name.

        Raises: UnusableInputError: the metric is not among them; they are listed.
        """
        if self.metric not in metrics:
            raise UnusableInputError(
                f"early_stopping.metric={self.metric!r} is not measured. Measured are: {', '.join(sorted(metrics))}."
            )
        value = metrics[self.metric]
        if self._is_better(value):
            self.best, self.best_step, self.num_without = value, step, 0
            return Observation(improved=True)
        self.num_without += 1
        if self.patience is None or self.num_without < self.patience:
            return Observation(improved=False)
        best = "no finite value" if self.best is None else f"the best, {self.best:.4g}, was at step {self.best_step}"
        return Observation(
            improved=False,
            stop_reason=f"{self.metric} has not improved in {self.num_without} validations; {best}.",
        )

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """Best value, its step, and the validations since."""
        return {"best": self.best, "best_step": self.best_step, "num_without": self.num_without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where a saved run stopped."""
        self.best, self.best_step, self.num_without = state["best"], state["best_step"], int(state["num_without"])


def is_higher_better(metric: str) -> bool:
    """Whether a metric is of the kind that is to grow."""
    return any(word in metric for word in _HIGHER_IS_BETTER)

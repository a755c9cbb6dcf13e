"""Watch-dogs: steps that must not happen, and losses that stand out."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


class StepGuard:
    """Take an optimizer step only if the gradient norm is finite, so that weights and moments are never poisoned.

    The decision stays on the device with optimizers that take one there (torch's ``fused=True``); with others, on a
    GPU, it costs one host sync a step. ``num_skipped`` is a device counter, to be read when something is logged.
    """

    def __init__(self) -> None:
        self.num_skipped: torch.Tensor | None = None

    def step(self, optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor) -> torch.Tensor:
        """Step or skip.

        Args:
            optimizer: its gradients are what ``grad_norm`` measured.
            grad_norm: scalar over all ranks, so that all ranks decide alike.

        Returns: float32 scalar on the device: 1 where the step was skipped.
        """
        skip = (~torch.isfinite(grad_norm.detach())).float().reshape(())
        self.num_skipped = skip if self.num_skipped is None else self.num_skipped + skip
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            device_side: Any = optimizer
            device_side.grad_scale, device_side.found_inf = None, skip
            try:
                optimizer.step()
            finally:
                del device_side.grad_scale, device_side.found_inf
        elif not bool(skip):
            optimizer.step()
        return skip

    def state_dict(self) -> dict[str, int]:
        """Steps skipped so far."""
        return {"num_skipped": 0 if self.num_skipped is None else int(self.num_skipped)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counter."""
        self.num_skipped = torch.tensor(float(state["num_skipped"]))


@dataclass(frozen=True)
class Spike:
    """A loss that stands out, and what it was computed on."""

    step: int
    loss: float
    usual: float
    """Median of the window before it."""
    deviations: float
    """Distance from the median in robust standard deviations; infinite for a non-finite loss."""
    sample_ids: tuple[int, ...]

    def __str__(self) -> str:
        ids = ", ".join(map(str, self.sample_ids[:16])) or "unknown"
        more = f" and {len(self.sample_ids) - 16} more" if len(self.sample_ids) > 16 else ""
        return f"step {self.step}: loss {self.loss:.4g} against a usual {self.usual:.4g}; samples {ids}{more}"


class SpikeDetector:
    """Compare each loss with the ones before it; a spike names its samples and does not move the window.

    Args:
        window: losses to compare with.
        threshold: robust standard deviations (1.4826 times the median absolute deviation) that make a spike.
        min_steps: losses to see before judging.
    """

    def __init__(self, *, window: int = 100, threshold: float = 6.0, min_steps: int = 20) -> None:
        if not 2 <= min_steps <= window:
            raise ValueError(f"min_steps={min_steps}, window={window}: 2 <= min_steps <= window. Use 20 and 100.")
        if not threshold > 0.0:
            raise ValueError(f"threshold={threshold}: it must be > 0. 6 robust deviations is usual.")
        self.threshold, self.min_steps = threshold, min_steps
        self._losses: deque[float] = deque(maxlen=window)

    def observe(self, step: int, loss: float, sample_ids: Sequence[int] = ()) -> Spike | None:
        """The spike that this loss is, or None. A loss that is not finite is one from the first step on."""
        finite = loss - loss == 0.0
        if not finite:
            usual = statistics.median(self._losses) if self._losses else float("nan")
            return Spike(step, loss, usual, float("inf"), tuple(sample_ids))
        if len(self._losses) >= self.min_steps:
            usual = statistics.median(self._losses)
            spread = 1.4826 * statistics.median(abs(seen - usual) for seen in self._losses)
            # The floor keeps a flat stretch of losses from making a spike of every ripple.
            deviations = (loss - usual) / max(spread, 1e-3 * abs(usual), 1e-12)
            if deviations > self.threshold:
                return Spike(step, loss, usual, deviations, tuple(sample_ids))
        self._losses.append(loss)
        return None

    def state_dict(self) -> dict[str, list[float]]:
        """The window."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore the window."""
        self._losses.clear()
        self._losses.extend(state["losses"])

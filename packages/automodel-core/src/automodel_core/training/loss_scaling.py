"""Loss scaling for float16, without a host sync."""

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor


class LossScaler:
    """Multiply the loss so that small float16 gradients survive, and adapt the factor on the device.

    A step: ``scaler.scale(loss).backward()``, ``scaler.unscale_(parameters)``, clip, ``skipped = guard.step(...)`` with
    a ``StepGuard``, ``scaler.update(skipped)``.

    Args:
        init_scale: first factor.
        growth_interval: clean steps after which the factor doubles; it halves after each skipped one.
        min_scale: the factor halves no further; a step that overflows here has gradients that are not finite.
    Source: Micikevicius et al., arXiv:1710.03740.
    """

    def __init__(self, *, init_scale: float = 2.0**16, growth_interval: int = 2000, min_scale: float = 1.0) -> None:
        if not 0.0 < min_scale <= init_scale or growth_interval < 1:
            raise ValueError(
                f"init_scale={init_scale}, growth_interval={growth_interval}, min_scale={min_scale}: all must be "
                "positive, and min_scale at most init_scale. Use 65536, 2000 and 1."
            )
        self.growth_interval, self.min_scale = growth_interval, min_scale
        self._scale = torch.tensor(float(init_scale))
        self._clean_steps = torch.tensor(0.0)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call ``backward`` on."""
        self._scale, self._clean_steps = self._scale.to(loss.device), self._clean_steps.to(loss.device)
        return loss * self._scale

    @torch.no_grad()
    def unscale_(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divide gradients in place; overflow stays visible as inf or NaN."""
        for parameter in parameters:
            if parameter.grad is not None:
                grad = parameter.grad
                _local(grad).div_(self._scale.to(grad.device))

    def update(self, skipped: torch.Tensor) -> None:
        """Adapt the factor.

        Args:
            skipped: scalar, 1 where the step did not happen, as ``StepGuard.step`` returns it.
        """
        clean = (self._clean_steps + 1.0) * (1.0 - skipped)
        grow = (clean >= self.growth_interval).float()
        self._scale = (self._scale * torch.exp2(grow - skipped)).clamp(min=self.min_scale)
        self._clean_steps = clean * (1.0 - grow)

    @property
    def exhausted(self) -> bool:
        """Whether the factor is at its minimum; costs a host sync."""
        return float(self._scale) <= self.min_scale

    def state_dict(self) -> dict[str, float]:
        """Factor and clean steps."""
        return {"scale": float(self._scale), "clean_steps": float(self._clean_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore them."""
        self._scale, self._clean_steps = torch.tensor(state["scale"]), torch.tensor(state["clean_steps"])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

"""Loss scaling for float16, without a host sync."""

from collections.abc import Iterable

import torch


class LossScaler:
    """Multiply the loss so that small float16 gradients survive, and adapt the factor on the device.

    A step: ``scaler.scale(loss).backward()``, ``scaler.unscale_(parameters)``, clip, ``skipped = guard.step(...)`` with
    a ``StepGuard``, ``scaler.update(skipped)``.

    Args:
        init_scale: first factor.
        growth_interval: clean steps after which the factor doubles; it halves after each skipped one.
    Source: Micikevicius et al., arXiv:1710.03740.
    """

    def __init__(self, *, init_scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        if not init_scale > 0.0 or growth_interval < 1:
            raise ValueError(
                f"init_scale={init_scale}, growth_interval={growth_interval}: both must be positive. Use 65536 "
                "and 2000."
            )
        self.growth_interval = growth_interval
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
                parameter.grad.div_(self._scale.to(parameter.grad.dtype))

    def update(self, skipped: torch.Tensor) -> None:
        """Adapt the factor.

        Args:
            skipped: scalar, 1 where the step did not happen, as ``StepGuard.step`` returns it.
        """
        clean = (self._clean_steps + 1.0) * (1.0 - skipped)
        grow = (clean >= self.growth_interval).float()
        self._scale = self._scale * torch.exp2(grow - skipped)
        self._clean_steps = clean * (1.0 - grow)

    def state_dict(self) -> dict[str, float]:
        """Factor and clean steps."""
        return {"scale": float(self._scale), "clean_steps": float(self._clean_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore them."""
        self._scale, self._clean_steps = torch.tensor(state["scale"]), torch.tensor(state["clean_steps"])

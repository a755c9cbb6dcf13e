"""Mend what a released transformers gets wrong in a vision tower, on the instance."""

from dataclasses import dataclass
from typing import Any

from torch import nn

# Marked causal (transformers 5.24), so that SDPA without a mask, which is any image that fills its tiles, lets a patch
# see earlier ones only; with a mask, and under eager attention, it sees all. Remove when the floor is past it.
_NOT_CAUSAL = ("Phi4MultimodalVisionAttention",)


@dataclass(frozen=True)
class RepairReport:
    """Which attention was set to see both ways, and in how many layers."""

    kind: str
    num_layers: int

    def __str__(self) -> str:
        return f"repaired: {self.num_layers} layers of {self.kind} see the whole image, not only earlier patches"


def see_whole_images(model: nn.Module) -> RepairReport | None:
    """Let vision attention that is causal by mistake see all patches; None where there is none."""
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ in _NOT_CAUSAL and m.is_causal]
    for layer in layers:
        layer.is_causal = False
    return RepairReport(type(layers[0]).__name__, len(layers)) if layers else None

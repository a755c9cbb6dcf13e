"""LoRA modules, known only by ``lora_A``, ``lora_B``, ``scaling`` and ``dropout``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_kernels.ops.lora import lora_linear
from automodel_kernels.patch.forwards import Forward

_SEAM = ("lora_A", "lora_B", "scaling", "dropout")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def looks_like_lora(module: nn.Module) -> bool:
    """Whether a module is a linear layer with an adapter."""
    return isinstance(module, nn.Linear) and all(hasattr(module, name) for name in _SEAM)


def lora_unfit(module: nn.Module) -> str:
    """Why a LoRA module keeps its own forward."""
    extra = sorted(n for n in {*module._parameters, *module._modules} if "lora_" in n and n not in ("lora_A", "lora_B"))
    if extra:
        return f"it carries {', '.join(extra)} (kernels know lora_A and lora_B)"
    if not all(isinstance(getattr(module, n), nn.Linear) for n in ("lora_A", "lora_B")):
        return "lora_A and lora_B are not linear layers"
    if any(getattr(module, n).bias is not None for n in ("lora_A", "lora_B")):
        return "its adapter has a bias"
    weight = module.weight
    if type(weight) is not nn.Parameter or weight.dtype not in _FLOATS or weight.ndim != 2:
        return f"its base weight is quantised ({type(weight).__name__}, {str(weight.dtype).removeprefix('torch.')})"
    if len([cls for cls in type(module).__mro__ if issubclass(cls, nn.Linear) and "forward" in vars(cls)]) > 2:
        return "its base layer has a forward of its own"
    if getattr(module, "dropout_position", "pre") == "post" and dropout_p(module):
        return "its dropout comes after the adapter (kernels drop the adapter's input)"
    return ""


def lora_forward(module: nn.Module, strict: bool) -> Forward:
    """The module's forward through :func:`automodel_kernels.ops.lora.lora_linear`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if getattr(self, "merged", False):
            return F.linear(x, self.weight, self.bias)
        return lora_linear(
            x,
            self.weight,
            self.lora_A.weight,
            self.lora_B.weight,
            scaling=float(self.scaling),
            bias=self.bias,
            dropout_p=dropout_p(self) if self.training else 0.0,
            strict=strict,
        )

    return forward


def dropout_p(module: Any) -> float:
    """The dropout probability, whether ``dropout`` is a number or a module."""
    dropout = module.dropout
    return float(getattr(dropout, "p", 0.0) if isinstance(dropout, nn.Module) else dropout or 0.0)

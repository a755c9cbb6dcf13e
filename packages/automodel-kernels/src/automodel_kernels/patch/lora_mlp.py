"""Gated MLPs whose three projections are LoRA layers."""

from typing import Any

from torch import Tensor, nn

from automodel_kernels.backend import is_dtensor
from automodel_kernels.ops.lora_mlp import LoRAWeights, lora_glu_mlp
from automodel_kernels.patch.forwards import Forward, activation_kind
from automodel_kernels.patch.lora import dropout_p, looks_like_lora, lora_unfit

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def lora_mlp_unfit(module: nn.Module) -> str:
    """Why an MLP cannot run as one op."""
    for name in _PROJECTIONS:
        layer: Any = getattr(module, name)
        if not looks_like_lora(layer):
            return f"{name} has no LoRA adapter"
        if lora_unfit(layer):
            return f"{name}: {lora_unfit(layer)}"
        if layer.bias is not None or dropout_p(layer) or layer.weight.requires_grad:
            return f"{name} has a bias, dropout or a trained base"
        if "forward" in vars(layer):
            return f"{name}'s forward was replaced on the instance"
    return ""


def lora_mlp_forward(module: nn.Module, strict: bool) -> Forward:
    """The MLP through :func:`automodel_kernels.ops.lora_mlp.lora_glu_mlp`; sharded weights take the class's forward."""
    kind = activation_kind(module.act_fn)

    def forward(self: Any, x: Tensor) -> object:
        layers = [getattr(self, name) for name in _PROJECTIONS]
        if any(is_dtensor(layer.weight) or getattr(layer, "merged", False) for layer in layers):
            return type(self).forward(self, x)
        gate, up, down = (
            LoRAWeights(layer.weight, layer.lora_A.weight, layer.lora_B.weight, float(layer.scaling))
            for layer in layers
        )
        return lora_glu_mlp(x, gate, up, down, activation=kind, strict=strict)

    return forward

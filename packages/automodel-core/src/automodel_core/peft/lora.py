"""A linear layer with a low-rank adapter, as a subclass of the layer that it was."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from automodel_core.peft.base_weight import base_weight, is_quantized
from automodel_core.peft.config import PeftConfig


class LoRALayer(nn.Linear):
    """``y = W x + b + scaling * B(A(x))``, with ``W`` where it always was and ``lora_A``, ``lora_B`` as children.

    ``patch_linear_module`` turns an existing layer into one; the class of a subclass of ``nn.Linear`` (a quantised
    layer, say) keeps its own forward for the base product. Other packages know a LoRA layer by ``lora_A``, ``lora_B``,
    ``scaling`` and ``dropout`` alone.

    Source: Hu et al., arXiv:2106.09685; DoRA: Liu et al., arXiv:2402.09353.
    """

    base_class: type[nn.Linear] = nn.Linear
    lora_A: nn.Linear
    lora_B: nn.Linear
    scaling: float
    dropout: nn.Module
    dropout_position: str
    lora_A_init: str
    use_dora: bool
    lora_magnitude_vector: nn.Parameter
    merged: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]`` in the base layer's dtype."""
        base = super().forward(x)
        if self.merged:
            return base
        if self.use_dora:
            return base + self._dora_change(x, base).to(base.dtype)
        return base + self.adapter_output(x).to(base.dtype)

    def adapter_output(self, x: torch.Tensor) -> torch.Tensor:
        """What the adapter alone adds, ``[..., out]`` in the adapter's dtype."""
        x = x.to(self.lora_A.weight.dtype)
        if self.dropout_position == "pre":
            return self.lora_B(self.lora_A(self.dropout(x)) * self.scaling)
        return self.dropout(self.lora_B(self.lora_A(x) * self.scaling))

    def delta_weight(self) -> torch.Tensor:
        """``scaling * B A``, ``[out, in]`` in the adapter's dtype, differentiable."""
        return (self.lora_B.weight @ self.lora_A.weight) * self.scaling

    def effective_weight(self) -> torch.Tensor:
        """The weight that base and adapter stand for together, ``[out, in]`` in the base's dtype, differentiable."""
        weight = base_weight(self)
        if self.merged:
            return weight
        changed = weight.to(self.lora_A.weight.dtype) + self.delta_weight()
        if self.use_dora:
            changed = changed * (self.lora_magnitude_vector / self.direction_norm()).unsqueeze(-1)
        return changed.to(weight.dtype)

    def direction_norm(self) -> torch.Tensor:
        """Row norms of ``W + scaling * B A``, ``[out]``: constant to autograd, as DoRA's section 4.3 has it."""
        with torch.no_grad():
            delta = self.delta_weight()
            return torch.linalg.vector_norm(base_weight(self).to(delta.dtype) + delta, dim=1)

    def _dora_change(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        x = x.to(self.lora_A.weight.dtype)
        if self.training and not isinstance(self.dropout, nn.Identity):
            x = self.dropout(x)
            product = F.linear(x, base_weight(self).to(x.dtype))
        else:
            product = base if self.bias is None else base - self.bias
        scale = self.lora_magnitude_vector / self.direction_norm()
        return (scale - 1.0) * product + scale * self.lora_B(self.lora_A(x) * self.scaling)

    def extra_repr(self) -> str:
        """The base layer's, with rank and scaling."""
        return f"{super().extra_repr()}, rank={self.lora_A.out_features}, scaling={self.scaling:g}"


def patch_linear_module(linear: nn.Linear, config: PeftConfig) -> LoRALayer:
    """Turn a linear layer into a LoRA layer in place: the object, its weight and its hooks stay.

    The adapter lives on the weight's device, in ``config.lora_dtype`` or the weight's dtype (float32 on a quantised
    base). ``lora_A`` is at torch's default initialisation; ``init_lora`` gives it the configured one.

    Raises: TypeError: no ``nn.Linear``; ValueError: it is a LoRA layer already, or quantised in an unknown way.
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{type(linear).__name__} is no nn.Linear: LoRA adapts linear layers. Choose another module.")
    if isinstance(linear, LoRALayer):
        raise ValueError("the layer has an adapter already: one is trained at a time. Merge or unload it first.")
    dtype, device = config.lora_dtype, linear.weight.device
    if dtype is None:
        dtype = torch.float32 if is_quantized(linear) else linear.weight.dtype
    layer: Any = linear
    layer.__class__ = _lora_class(linear.__class__)
    layer.lora_A = nn.Linear(linear.in_features, config.dim, bias=False, device=device, dtype=dtype)
    layer.lora_B = nn.Linear(config.dim, linear.out_features, bias=False, device=device, dtype=dtype)
    nn.init.zeros_(layer.lora_B.weight)
    layer.scaling = config.scaling
    layer.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
    layer.dropout_position = config.dropout_position
    layer.lora_A_init = config.lora_A_init
    layer.use_dora = config.use_dora
    layer.merged = False
    if config.use_dora:
        layer.lora_magnitude_vector = nn.Parameter(torch.empty(linear.out_features, device=device, dtype=dtype))
        reset_magnitude(layer)
    return layer


def unpatch_linear_module(layer: LoRALayer) -> nn.Linear:
    """The layer as it was, without its adapter."""
    for name in ("lora_A", "lora_B", "dropout"):
        delattr(layer, name)
    if layer.use_dora:
        del layer.lora_magnitude_vector
    for name in ("scaling", "dropout_position", "lora_A_init", "use_dora", "merged"):
        delattr(layer, name)
    for name in [name for name in layer._buffers if name.startswith("pissa_")]:
        delattr(layer, name)
    plain: Any = layer
    plain.__class__ = layer.base_class
    return plain


@torch.no_grad()
def reset_magnitude(layer: LoRALayer) -> None:
    """DoRA's magnitude at the row norms, so that the layer starts as its base."""
    if layer.weight.device.type != "meta":
        layer.lora_magnitude_vector.copy_(layer.direction_norm())


@cache
def _lora_class(base: type[nn.Linear]) -> type[LoRALayer]:
    if base is nn.Linear:
        return LoRALayer
    return type(f"LoRA{base.__name__}", (LoRALayer, base), {"base_class": base, "__module__": __name__})

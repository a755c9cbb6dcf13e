"""Quantisation-aware training: linear layers compute with the rounding that they will be served with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from automodel_core.peft.matching import ModuleMatcher, summary
from automodel_core.quantization.fake_quantize import fake_quantize_tokens, fake_quantize_weight

Scheme = Literal["int8_dynact_int4weight", "int4_weight_only"]
_SCHEMES = ("int8_dynact_int4weight", "int4_weight_only")


class FakeQuantLinear(nn.Linear):
    """A linear layer that rounds its weight, and maybe its input, on the way into the product.

    The weight itself stays as it is, under its own name: it is what the optimizer trains and what is saved.
    """

    base_class: type[nn.Linear] = nn.Linear
    group_size: int
    quantize_input: bool
    fake_quant_enabled: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        if not self.fake_quant_enabled:
            return super().forward(x)
        x = fake_quantize_tokens(x) if self.quantize_input else x
        return F.linear(x, fake_quantize_weight(self.weight, self.group_size), self.bias)


@dataclass(frozen=True)
class FakeQuantization:
    """The fake-quantised layers of a model, and when they begin."""

    scheme: str
    group_size: int
    fake_quant_after_n_steps: int
    layers: dict[str, FakeQuantLinear]

    def before_step(self, step: int) -> None:
        """Turn rounding on once ``fake_quant_after_n_steps`` steps are done.

        Args:
            step: number of the step that comes, from 1.
        """
        self._set(step > self.fake_quant_after_n_steps)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model is the plain one, as it is saved."""
        before = any(layer.fake_quant_enabled for layer in self.layers.values())
        self._set(False)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, enabled: bool) -> None:
        for layer in self.layers.values():
            layer.fake_quant_enabled = enabled

    def __str__(self) -> str:
        after = f" after {self.fake_quant_after_n_steps} steps" if self.fake_quant_after_n_steps else ""
        return (
            f"QAT {self.scheme}, groups of {self.group_size}, on {len(self.layers)} layers ({summary(self.layers)})"
            + after
        )


def apply_qat(
    model: nn.Module,
    *,
    scheme: Scheme = "int8_dynact_int4weight",
    group_size: int = 32,
    fake_quant_after_n_steps: int = 0,
    exclude_modules: Sequence[str] = (),
) -> FakeQuantization:
    """Fake-quantise every linear layer but the output head, in place. No parameter is renamed.

    Call it before ``apply_lora``: an adapter is then trained on top of the rounded base.

    Args:
        model: any model with floating-point linear layers.
        scheme: ``int8_dynact_int4weight`` rounds weights to 4 bits and inputs to 8, token by token;
            ``int4_weight_only`` rounds weights alone.
        group_size: inputs of a row that share a scale.
        fake_quant_after_n_steps: optimizer steps without rounding, for weights to settle first.
        exclude_modules: patterns of layers that stay as they are.

    Raises: ValueError: an unknown scheme, a layer whose width ``group_size`` does not divide, a quantised base, or
        adapters that are there already.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"qat scheme={scheme!r}: choose one of {', '.join(_SCHEMES)}. Correct the name.")
    if group_size < 1 or fake_quant_after_n_steps < 0:
        raise ValueError(
            f"qat group_size={group_size}, fake_quant_after_n_steps={fake_quant_after_n_steps}: a group has at least "
            "1 weight, and steps are not negative. Use 32 and 0."
        )
    layers = ModuleMatcher(exclude_modules=exclude_modules).select(model)
    for name, layer in layers.items():
        _check(name, layer, group_size)
    for layer in layers.values():
        _patch(layer, scheme, group_size, enabled=fake_quant_after_n_steps == 0)
    patched: Any = layers
    return FakeQuantization(scheme, group_size, fake_quant_after_n_steps, patched)


def _check(name: str, layer: nn.Linear, group_size: int) -> None:
    if isinstance(layer, FakeQuantLinear) or hasattr(layer, "lora_A"):
        raise ValueError(f"qat on {name}, a {type(layer).__name__}: it comes first, once. Call apply_qat before LoRA.")
    if not layer.weight.is_floating_point() or type(layer).forward is not nn.Linear.forward:
        raise ValueError(
            f"qat on {name}, a {type(layer).__name__} with {str(layer.weight.dtype).removeprefix('torch.')} weights: "
            "it trains plain floating-point layers. Load the model unquantised, or exclude the layer."
        )
    if layer.in_features % group_size:
        raise ValueError(
            f"qat group_size={group_size} on {name} with {layer.in_features} inputs: groups must divide them. Choose "
            f"{next(g for g in (128, 64, 32, 16, 8, 4, 2, 1) if layer.in_features % g == 0)}, or put the layer into "
            "exclude_modules."
        )


def _patch(layer: Any, scheme: str, group_size: int, *, enabled: bool) -> None:
    layer.__class__ = _fake_quant_class(layer.__class__)
    layer.group_size, layer.quantize_input = group_size, scheme == "int8_dynact_int4weight"
    layer.fake_quant_enabled = enabled


@cache
def _fake_quant_class(base: type[nn.Linear]) -> type[FakeQuantLinear]:
    if base is nn.Linear:
        return FakeQuantLinear
    return type(f"FakeQuant{base.__name__}", (FakeQuantLinear, base), {"base_class": base, "__module__": __name__})

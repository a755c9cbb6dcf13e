"""The dense weight under an adapter, whatever holds it."""

import math
from typing import Any

from torch import Tensor, nn


def is_quantized(linear: nn.Linear) -> bool:
    """Whether the weight holds codes and not numbers that one can multiply by."""
    return not linear.weight.is_floating_point() or hasattr(linear.weight, "quant_state")


def num_elements(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for: 4-bit codes lie two and more in one element."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def keep_codes_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on the CPU, in place.

    With AVX512-BF16, the first forward in eval mode puts them into a layout for inference, where they stay: every later
    training forward passes no gradient on to the layers before (bitsandbytes 0.50; an autograd warning is all it says).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - an attribute of their class alone


def base_weight(linear: nn.Linear) -> Tensor:
    """``[out, in]``: the weight itself, or a copy in floating point of a bitsandbytes one.

    Raises: ValueError: quantised in a way that this package cannot read.
    """
    if not is_quantized(linear):
        return linear.weight
    weight = linear.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if getattr(weight, "SCB", None) is not None:
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(weight.data, weight.SCB)
    raise ValueError(
        f"{type(linear).__name__} holds a {weight.dtype} weight that this package cannot read: it reads floating point "
        "and bitsandbytes. Dequantise the model first, or train its LoRA without merging."
    )

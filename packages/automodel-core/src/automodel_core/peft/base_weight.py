"""The dense weight under an adapter, whatever holds it."""

from torch import Tensor, nn


def is_quantized(linear: nn.Linear) -> bool:
    """Whether the weight holds codes and not numbers that one can multiply by."""
    return not linear.weight.is_floating_point() or hasattr(linear.weight, "quant_state")


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

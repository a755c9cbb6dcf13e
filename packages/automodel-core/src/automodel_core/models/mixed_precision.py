"""Compute in half precision on weights that stay in float32."""

import functools
from typing import Any

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_forward(model: Any, dtype: str) -> None:
    """Run this model's forward under ``torch.autocast``, by wrapping the instance's forward.

    Weights, gradients and optimizer state keep the weights' dtype; matmuls compute in ``dtype``, and what needs range
    (norms, softmax, losses) in float32. Losses on hidden states work inside, in the same dtype as a plain head.

    Args:
        model: a model with float32 weights, before it is wrapped for parallel training.
        dtype: bfloat16, or float16 together with a ``LossScaler``.

    Raises: ValueError: another dtype, or weights that are in half precision already.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"mixed_precision dtype={dtype!r}: choose bfloat16 or float16. float32 needs no section.")
    weights = {p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()}
    low = weights & set(_DTYPES.values())
    if low:
        raise ValueError(
            f"mixed_precision on trainable weights in {str(low.pop()).removeprefix('torch.')}: it keeps float32 "
            "weights and computes in half precision. Load the model with dtype: float32 (for LoRA, set lora_dtype: "
            "float32), or remove mixed_precision."
        )
    forward = model.forward

    @functools.wraps(forward)
    def autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_type(model), dtype=_DTYPES[dtype]):
            return forward(*args, **kwargs)

    model.forward = autocast


def _device_type(model: Any) -> str:
    return next(model.parameters()).device.type

"""What a 4- or 8-bit base takes instead of the 16 bits in which it is traced."""

from typing import Any

from torch import nn

from automodel_core.config import ConfigNode

_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit formats."""
_DOUBLE_BLOCK = 256
"""Scales that share one of their own, with double quantisation."""


def saved_by_quantization(config: ConfigNode, model: Any) -> int:
    """Bytes by which the frozen linear layers are smaller in bitsandbytes' formats than as they were traced.

    The output head stays as it is, as in transformers.
    """
    bytes_per_weight = _bytes_per_weight(config)
    if bytes_per_weight is None:
        return 0
    head = model.get_output_embeddings()
    frozen = [
        getattr(module.weight, "_local_tensor", module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    ]
    # LoRA's own matrices are linear layers as well, and they train.
    return sum(round(weight.nbytes - bytes_per_weight * weight.numel()) for weight in frozen)


def _bytes_per_weight(config: ConfigNode) -> float | None:
    for section in ("quantization", "model.quantization_config"):
        if config.get(f"{section}.load_in_4bit"):
            if config.get(f"{section}.bnb_4bit_use_double_quant"):
                return 0.5 + 1 / _BLOCK + 4 / (_BLOCK * _DOUBLE_BLOCK)
            return 0.5 + 4 / _BLOCK
        if config.get(f"{section}.load_in_8bit"):
            return 1.0
    return None

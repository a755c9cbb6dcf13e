"""Losses normalised by the label tokens of the global batch, and how to run a model under one."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ChunkedCrossEntropy": "chunked_ce",
    "FusedLinearCrossEntropy": "linear_ce",
    "HeadTransform": "linear_ce",
    "IGNORE_INDEX": "labels",
    "KDLoss": "kd",
    "MaskedCrossEntropy": "masked_ce",
    "count_label_tokens": "labels",
    "forward_kd_loss": "kd",
    "forward_loss": "forward",
    "hf_loss": "hf",
    "label_index": "labels",
    "shift_labels": "labels",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

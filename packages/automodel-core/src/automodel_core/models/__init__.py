"""Hugging Face models: loading, meta-device initialisation, freezing and vocabulary."""

from importlib import import_module
from typing import Any

_HOMES = {
    "FreezeReport": "freeze",
    "NeMoAutoModelForCausalLM": "auto_model",
    "NeMoAutoModelForImageTextToText": "auto_model",
    "NeMoAutoModelForSequenceClassification": "auto_model",
    "WeightSource": "meta",
    "add_token_rows": "vocabulary",
    "apply_freezing": "freeze",
    "autocast_forward": "mixed_precision",
    "check_tokenizer": "vocabulary",
    "extend_tokenizer": "vocabulary",
    "materialize": "meta",
    "resize_vocabulary": "vocabulary",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

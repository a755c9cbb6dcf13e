"""Hugging Face model wrappers, LoRA, losses, optimisation and YAML configuration for fine-tuning."""

from importlib import import_module
from typing import Any

from automodel_core.__about__ import __version__

_HOMES = {
    "NeMoAutoModelForCausalLM": "automodel_core.models",
    "NeMoAutoModelForImageTextToText": "automodel_core.models",
    "NeMoAutoModelForSequenceClassification": "automodel_core.models",
    "load_config": "automodel_core.config",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

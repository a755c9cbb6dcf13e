"""Hugging Face model wrappers, LoRA, losses, optimisation and YAML configuration for fine-tuning."""

from automodel_core.__about__ import __version__

__all__ = ["__version__"]

"""Triton, Transformer Engine and FP8 kernels for Hugging Face models, each with a plain PyTorch twin."""

from automodel_kernels.__about__ import __version__

__all__ = ["__version__"]

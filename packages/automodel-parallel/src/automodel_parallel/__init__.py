"""DDP, FSDP2, megatron-fsdp, tensor, sequence, context, pipeline and expert parallelism for Hugging Face models."""

from automodel_parallel.__about__ import __version__

__all__ = ["__version__"]

"""Checkpoints that survive crashes, resume exactly and load straight back into Hugging Face and PEFT."""

from automodel_ckpt.__about__ import __version__

__all__ = ["__version__"]

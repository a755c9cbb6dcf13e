"""Adapters for NVIDIA's Transformer Engine: optional, imported at first use, checked before."""

from automodel_kernels.te.availability import TEUnavailableError, require_te, te_missing

__all__ = ["TEUnavailableError", "require_te", "te_missing"]

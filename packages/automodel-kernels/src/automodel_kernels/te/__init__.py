"""Adapters for NVIDIA's Transformer Engine: optional, imported at first use, checked before.

Every call goes through a table of what each release expects (:mod:`automodel_kernels.te.surface`), by keyword.
"""

from automodel_kernels.te.attention import register_te_attention
from automodel_kernels.te.autocast import te_autocast
from automodel_kernels.te.availability import TEUnavailableError, require_te, te_missing
from automodel_kernels.te.cross_entropy import te_parallel_cross_entropy
from automodel_kernels.te.layers import TEReport, convert_to_te

__all__ = [
    "TEReport",
    "TEUnavailableError",
    "convert_to_te",
    "register_te_attention",
    "require_te",
    "te_autocast",
    "te_missing",
    "te_parallel_cross_entropy",
]

"""Transformer Engine's own vocabulary-parallel cross-entropy, for comparison with ours."""

import torch.distributed as dist
from torch import Tensor

from automodel_kernels.te.availability import require_te
from automodel_kernels.te.surface import surface


def te_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Token losses ``[B, T]`` of logits ``[B, T, V_r]``.

    It writes its gradient over the logits, so they are cloned first: callers keep theirs.

    Raises: TEUnavailableError: with the reason.
    """
    te = require_te()
    names = surface()
    values = (logits.clone(), labels, label_smoothing, False, group, ignore_index)
    if names.cross_entropy_by_keyword:
        return te.parallel_cross_entropy(**dict(zip(names.cross_entropy, values, strict=True)))
    return te.parallel_cross_entropy(*values)

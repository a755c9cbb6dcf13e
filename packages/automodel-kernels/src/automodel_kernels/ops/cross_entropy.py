"""Cross-entropy on given logits: one online-softmax pass forward, one pass backward, float32 logits never stored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend
from automodel_kernels.ops.labels import LossOptions, check_labels, check_reduction


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    num_valid: Tensor | float | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    strict: bool = False,
) -> Tensor:
    """Cross-entropy; ``d loss / d x_v = g (p_v (1 + 2 z lse) - (1 - s) [v = y] - s / V)``.

    Args:
        logits: ``[..., V]``; left untouched.
        labels: ``[...]`` int64, already shifted; ``ignore_index`` gives loss 0 and gradient 0.
        num_valid: denominator of ``"mean"``; by default the number of valid labels here. None valid gives 0.
        softcap: Gemma 2's cap ``c``: logits become ``c tanh(x / c)``.
        z_loss: weight of ``lse^2``.
        strict: a fallback to PyTorch is an error.

    Returns: float32 (float64 for float64 logits): a scalar, or ``[...]`` for ``reduction="none"``.
    Raises: ValueError: shapes disagree, a label >= V, or an unknown option. TypeError: labels are not int64.
    """
    options = LossOptions(ignore_index, softcap, z_loss, label_smoothing)
    check_reduction(reduction)
    check_labels(labels, logits.shape[-1], ignore_index, expected_shape=logits.shape[:-1])
    flat_logits, flat_labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if choose_backend("cross_entropy", logits, labels, strict=strict) == "triton":
        from automodel_kernels.triton_ops.cross_entropy import token_losses

        losses = token_losses(flat_logits, flat_labels, options)
    else:
        losses = token_losses_torch(flat_logits, flat_labels, options)
    reduced = reference.reduce_tokens(
        losses, flat_labels, reduction=reduction, num_valid=num_valid, ignore_index=ignore_index
    )
    return reduced.reshape(labels.shape) if reduction == "none" else reduced


def token_losses_torch(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """The PyTorch twin's token losses; an empty batch stays connected to the graph."""
    if logits.shape[0] == 0:
        return logits.sum(-1).to(torch.promote_types(logits.dtype, torch.float32))
    if options.plain and logits.dtype in (torch.float32, torch.float64):  # torch's fused one, a fifth of the time
        return F.cross_entropy(logits, labels, ignore_index=options.ignore_index, reduction="none")
    return reference.token_cross_entropy(
        logits,
        labels,
        ignore_index=options.ignore_index,
        softcap=options.softcap,
        z_loss=options.z_loss,
        label_smoothing=options.label_smoothing,
    )

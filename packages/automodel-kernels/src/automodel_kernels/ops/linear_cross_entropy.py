"""Cross-entropy of ``hidden @ weight.T`` that never holds the whole logits, and skips tokens without a label.

Letters: N tokens, n tokens looked at, V vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend, is_dtensor
from automodel_kernels.ops.chunking import chunk_rows_for
from automodel_kernels.ops.labels import LossOptions, check_labels, check_reduction


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    label_index: Tensor | None = None,
    reduction: str = "mean",
    num_valid: Tensor | float | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    strict: bool = False,
) -> Tensor:
    """Cross-entropy of a linear head, chunk by chunk: logits exist for one chunk of tokens at a time.

    For ``"sum"`` and ``"mean"`` the gradients are formed in the forward pass (3 GEMMs with a trained head, 2 with a
    frozen one); for ``"none"`` they are recomputed in the backward pass, with each token's upstream gradient folded in
    before the projection.

    Args:
        hidden: ``[..., H]``.
        weight: ``[V, H]``, in hidden's dtype unless autocast is on.
        labels: ``[...]`` int64, already shifted.
        bias: ``[V]``.
        label_index: ``[n]`` int64, flat positions that hold labels, padded with an ignored position; the collator knows
            them, so nothing waits for the device. Without it, CPU tensors are indexed here and CUDA tensors are not.
        num_valid: denominator of ``"mean"``; by default the valid labels that were looked at. None valid gives 0.
        softcap: logits become ``c tanh(x / c)``.
        chunk_rows: tokens a chunk; by default from a memory budget, fixed under deterministic algorithms.
        strict: a fallback to PyTorch is an error.

    Returns: float32 (float64 for float64 inputs): a scalar, or ``[...]`` for ``reduction="none"``.
    Raises: ValueError, TypeError: shapes, dtypes, labels or options that do not fit, before any kernel runs.
    """
    options = LossOptions(ignore_index, softcap, z_loss, label_smoothing)
    check_reduction(reduction)
    _check_head(hidden, weight, bias, chunk_rows)
    check_labels(labels, weight.shape[0], ignore_index, expected_shape=hidden.shape[:-1])
    hidden, weight, bias = _autocast(hidden, weight, bias)
    backend = choose_backend("linear_cross_entropy", hidden, weight, labels, strict=strict)
    if any(is_dtensor(tensor) for tensor in (hidden, weight, labels)):
        return reference.linear_cross_entropy(
            hidden,
            weight,
            labels,
            bias=bias,
            label_index=label_index,
            reduction=reduction,
            num_valid=num_valid,
            ignore_index=ignore_index,
            softcap=softcap,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )
    flat_labels = labels.reshape(-1)
    _check_index(label_index, flat_labels, ignore_index)
    total = _call_op(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        flat_labels,
        label_index,
        options,
        rows=chunk_rows or chunk_rows_for(weight),
        per_token=reduction == "none",
        triton=backend == "triton",
    )
    if reduction == "none":
        return total.reshape(labels.shape)
    if reduction == "sum":
        return total
    return _mean(total, flat_labels, label_index, num_valid, ignore_index)


def _call_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_index: Tensor | None,
    options: LossOptions,
    *,
    rows: int,
    per_token: bool,
    triton: bool,
) -> Tensor:
    from automodel_kernels.ops.linear_ce_op import linear_ce

    wants = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias)]
    outputs = linear_ce(
        hidden,
        weight,
        bias,
        labels,
        label_index,
        options.ignore_index,
        options.softcap or 0.0,
        options.z_loss,
        options.label_smoothing,
        rows,
        per_token,
        triton,
        *(wants if not per_token else (False, False, False)),
    )
    return outputs[0]


def _mean(
    total: Tensor, labels: Tensor, label_index: Tensor | None, num_valid: Tensor | float | None, ignore_index: int
) -> Tensor:
    if num_valid is None:
        looked_at = labels if label_index is None else labels.index_select(0, label_index)
        num_valid = (looked_at != ignore_index).sum()
    return total / (num_valid.clamp(min=1) if isinstance(num_valid, Tensor) else max(num_valid, 1))


def _autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"hidden states are {hidden.dtype}, the head is {weight.dtype}: they must be equal outside autocast. "
            "Cast one of them, or run under torch.autocast."
        )
    return hidden, weight, bias


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_rows: int | None) -> None:
    if weight.ndim != 2 or hidden.ndim < 2 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden states have shape {tuple(hidden.shape)}, the head {tuple(weight.shape)}: they must be [..., H] "
            "and [V, H]. Pass the weight as nn.Linear stores it."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}: it must be ({weight.shape[0]},), one per class.")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows}: it must be 1 or more. Leave it None for a memory budget.")


def _check_index(label_index: Tensor | None, labels: Tensor, ignore_index: int) -> None:
    if label_index is None:
        return
    if label_index.ndim != 1 or label_index.dtype != torch.int64:
        raise ValueError(
            f"label_index has shape {tuple(label_index.shape)} and dtype {label_index.dtype}: it must be a flat int64 "
            "tensor of positions. Build it with the collator, or leave it None."
        )
    if label_index.device.type != "cpu" or label_index.numel() == 0 or torch.compiler.is_compiling():
        return
    if int(label_index.min()) < 0 or int(label_index.max()) >= labels.numel():
        raise ValueError(
            f"label_index spans {int(label_index.min())}..{int(label_index.max())}: positions must be in "
            f"[0, {labels.numel()}). Rebuild it after sharding or slicing the batch."
        )
    valid = label_index[labels[label_index] != ignore_index]
    if valid.unique().numel() != valid.numel():
        raise ValueError(
            "label_index names a labelled position twice: each may occur once. Pad with a position that is ignored."
        )

"""Cross-entropy of logits whose vocabulary is split over ranks: 12 bytes a token and rank are exchanged.

Letters: N tokens, V_r the classes of this rank (shards may be uneven). Method: each rank's maximum, sum of exponentials
and target logit are gathered once and combined; the backward pass is local (section 3 of
arXiv:1909.08053).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from automodel_kernels.backend import choose_backend
from automodel_kernels.reference import reduce_tokens, wide_dtype

Stats = tuple[Tensor, Tensor, Tensor]


def vocab_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    reduction: str = "mean",
    num_valid: Tensor | float | None = None,
    ignore_index: int = -100,
    strict: bool = False,
) -> Tensor:
    """Cross-entropy over the classes of all ranks of ``group``; the logits are left untouched.

    Args:
        logits: ``[..., V_r]``, this rank's columns.
        labels: ``[...]`` int64, global class numbers, the same on every rank.
        group: the tensor-parallel group; None without an initialised process group means one rank.
        vocab_start: first class of this rank; None derives it by gathering the shard sizes (one host sync).
        num_valid: denominator of ``"mean"``.
        strict: a fallback to PyTorch is an error.

    Returns: the same value on every rank; the gradient is this rank's columns.
    Raises: ValueError: shapes disagree, or a label lies outside all shards (CPU; on CUDA by a device assertion).
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}: they must be [...] and "
            "[..., V_r]."
        )
    size, rank = _size_and_rank(group)
    if vocab_start is None:
        vocab_start = sum(_gather_sizes(logits, group, size)[:rank])
    backend = choose_backend("vocab_parallel_cross_entropy", logits, labels, strict=strict)
    flat = labels.reshape(-1)
    losses = _VocabParallelCE.apply(
        logits.reshape(-1, logits.shape[-1]), flat, vocab_start, group, size, ignore_index, backend
    )
    reduced = reduce_tokens(losses, flat, reduction=reduction, num_valid=num_valid, ignore_index=ignore_index)
    return reduced.reshape(labels.shape) if reduction == "none" else reduced


class _VocabParallelCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        vocab_start: int,
        group: dist.ProcessGroup | None,
        size: int,
        ignore_index: int,
        backend: str,
    ) -> Tensor:
        valid = labels != ignore_index
        here = valid & (labels >= vocab_start) & (labels < vocab_start + logits.shape[1])
        local = torch.where(here, labels - vocab_start, -1)
        peak, total, at_label = _local_stats(logits, local, backend)
        lse, target, owners = _combine((peak, total, at_label), here, group, size)
        _check_owned(owners, valid)
        ctx.save_for_backward(logits, local, lse, valid)
        ctx.backend = backend
        return torch.where(valid, lse - target, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, local, lse, valid = ctx.saved_tensors
        scale = torch.where(valid, grad, 0.0)
        if ctx.backend == "triton":
            from automodel_kernels.triton_ops.cross_entropy import grad_from_lse

            return grad_from_lse(logits, local, lse, scale), None, None, None, None, None, None
        probs = (logits.to(lse.dtype) - lse.unsqueeze(-1)).exp_()
        hit = (local >= 0).to(probs.dtype).neg_().unsqueeze(-1)
        probs.scatter_add_(-1, local.clamp(min=0).unsqueeze(-1), hit)
        return probs.mul_(scale.unsqueeze(-1)).to(logits.dtype), None, None, None, None, None, None


def _local_stats(logits: Tensor, local: Tensor, backend: str) -> Stats:
    """Maximum, sum of exponentials relative to it, and target logit (0 where another rank owns it), each ``[N]``."""
    if backend == "triton":
        from automodel_kernels.triton_ops.cross_entropy import local_stats

        return local_stats(logits, local)
    wide = logits.to(wide_dtype(logits.dtype))
    peak = wide.amax(-1)
    total = (wide - peak.unsqueeze(-1)).exp_().sum(-1)
    at_label = wide.gather(-1, local.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return peak, total, torch.where(local >= 0, at_label, 0.0)


def _combine(stats: Stats, here: Tensor, group: dist.ProcessGroup | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.stack((*stats, here.to(stats[0].dtype)))
    gathered = [torch.empty_like(packed) for _ in range(size)]
    if size == 1:
        gathered = [packed]
    else:
        dist.all_gather(gathered, packed, group=group)
    peaks, totals, targets, owned = torch.stack(gathered, dim=1)
    peak = peaks.amax(0)
    lse = peak + (totals * (peaks - peak).exp()).sum(0).log()
    return lse, targets.sum(0), owned.sum(0)


def _check_owned(owners: Tensor, valid: Tensor) -> None:
    fine = ((owners == 1) | ~valid).all()
    if owners.device.type != "cpu":
        torch._assert_async(fine, "a label belongs to no vocabulary shard, or to two")
    elif not bool(fine):
        raise ValueError(
            "a label belongs to no vocabulary shard, or to two: labels must be in [0, V) over all ranks, or ignored. "
            "Check vocab_start and that tokenizer and model have the same vocabulary."
        )


def _size_and_rank(group: dist.ProcessGroup | None) -> tuple[int, int]:
    if not dist.is_available() or not dist.is_initialized():
        return 1, 0
    return dist.get_world_size(group), dist.get_rank(group)


def _gather_sizes(logits: Tensor, group: dist.ProcessGroup | None, size: int) -> list[int]:
    mine = torch.tensor([logits.shape[-1]], device=logits.device)
    if size == 1:
        return [logits.shape[-1]]
    sizes = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(sizes, mine, group=group)
    return torch.cat(sizes).tolist()

"""``automodel::linear_ce``: the chunk loop as one torch.library operator, and its autograd.

One loop serves both backends: matrix products are torch's (cuBLAS, oneDNN), and the softmax of a chunk is either the
PyTorch code of :mod:`automodel_kernels.ops.token_loss` or the Triton kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automodel_kernels.ops.labels import LossOptions
from automodel_kernels.ops.token_loss import loss_and_grad, loss_only

ChunkLoss = Callable[[Tensor, Tensor, Tensor | None, LossOptions], tuple[Tensor, Tensor]]
_COMPACT_BELOW = 0.95
"""Share of labelled tokens under which gathering them on CPU costs less than computing the rest."""


@dataclass
class _Grads:
    """Accumulators; None where no gradient is wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


@torch.library.custom_op("automodel::linear_ce", mutates_args=())
def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_index: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    per_token: bool,
    triton: bool,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss (summed, or one per token) and the gradients of its sum; unwanted ones are empty.

    ``softcap=0`` means none. Shapes: hidden ``[N, H]``, weight ``[V, H]``, labels ``[N]``.
    """
    options = LossOptions(ignore_index, softcap or None, z_loss, label_smoothing)
    wants = (want_hidden, want_weight, want_bias)
    with torch.autocast(hidden.device.type, enabled=False):  # inputs have their dtype: a second cast would lose bits
        losses, grads = _run(hidden, weight, bias, labels, label_index, None, options, rows, triton, wants)
    loss = losses if per_token else losses.sum()
    return (loss, *(_cast_or_empty(g, p, hidden) for g, p in zip(grads, (hidden, weight, bias))))


@linear_ce.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_index: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    per_token: bool,
    triton: bool,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty(labels.shape if per_token else (), dtype=wide)
    empty = [hidden.new_empty(0) for _ in range(3)]
    return (
        loss,
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if want_hidden else empty[0],
        torch.empty_like(weight, memory_format=torch.contiguous_format) if want_weight else empty[1],
        torch.empty_like(bias) if want_bias and bias is not None else empty[2],
    )


@torch.library.custom_op("automodel::linear_ce_recompute", mutates_args=())
def linear_ce_recompute(
    token_grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_index: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    triton: bool,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for one upstream gradient per token, ``[N]``, recomputing the logits."""
    options = LossOptions(ignore_index, softcap or None, z_loss, label_smoothing)
    wants = (want_hidden, want_weight, want_bias)
    with torch.autocast(hidden.device.type, enabled=False):
        _, grads = _run(hidden, weight, bias, labels, label_index, token_grad, options, rows, triton, wants)
    gh, gw, gb = (_cast_or_empty(g, p, hidden) for g, p in zip(grads, (hidden, weight, bias)))
    return gh, gw, gb


@linear_ce_recompute.register_fake
def _(
    token_grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_index: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    triton: bool,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if want_hidden else hidden.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if want_weight else hidden.new_empty(0),
        torch.empty_like(bias) if want_bias and bias is not None else hidden.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, labels, label_index, *rest = inputs
    *numbers, per_token, ctx.triton, _, _, _ = rest
    ctx.numbers, ctx.per_token = numbers, per_token
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    if per_token:
        ctx.save_for_backward(hidden, weight, bias, labels, label_index)
    else:
        ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 12
    needed = ctx.needs_input_grad[:3]
    if grad_loss is None:
        return (None, None, None, *nothing)
    if ctx.per_token:
        grads = linear_ce_recompute(
            grad_loss.contiguous(), *ctx.saved_tensors, *ctx.numbers, ctx.triton, *map(bool, needed)
        )
    else:
        grads = tuple(g * grad_loss.to(g.dtype) for g in ctx.saved_tensors)
    return (*(g if need else None for g, need in zip(grads, needed)), *nothing)


linear_ce.register_autograd(_backward, setup_context=_setup)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    index: Tensor | None,
    token_grad: Tensor | None,
    options: LossOptions,
    rows: int,
    triton: bool,
    wants: tuple[bool, bool, bool],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    hidden_c, weight_c, bias_c = (None if t is None else _compute_copy(t) for t in (hidden, weight, bias))
    assert hidden_c is not None
    assert weight_c is not None
    if index is None:
        index = _index_on_cpu(labels, options.ignore_index)
    grads = _accumulators(hidden_c, weight_c, bias_c, wants)
    losses = torch.zeros(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    num = labels.numel() if index is None else index.numel()
    chunk_loss = _chunk_loss(triton) if any(wants) else _chunk_loss_without_grad(triton)
    for start in range(0, num, rows):
        where = slice(start, min(start + rows, num)) if index is None else index[start : start + rows]
        rows_hidden = hidden_c[where]
        logits = rows_hidden @ weight_c.t() if bias_c is None else torch.addmm(bias_c, rows_hidden, weight_c.t())
        upstream = None if token_grad is None else token_grad[where]
        losses[where], grad_logits = chunk_loss(logits, labels[where], upstream, options)
        _accumulate(grads, grad_logits, rows_hidden, weight_c, where)
    return losses, (grads.hidden, grads.weight, grads.bias)


def _accumulate(grads: _Grads, grad_logits: Tensor, rows_hidden: Tensor, weight: Tensor, where: slice | Tensor) -> None:
    if grads.hidden is not None:
        grads.hidden[where] = grad_logits @ weight
    if grads.weight is not None:
        _add_product(grads.weight, grad_logits.t(), rows_hidden)
    if grads.bias is not None:
        grads.bias += grad_logits.sum(0, dtype=grads.bias.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` inside the matrix product; low-precision factors accumulate into float32 (CUDA)."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)


def _accumulators(hidden: Tensor, weight: Tensor, bias: Tensor | None, wants: tuple[bool, bool, bool]) -> _Grads:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return _Grads(
        torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wants[0] else None,
        torch.zeros(weight.shape, dtype=wide, device=weight.device) if wants[1] else None,
        torch.zeros(bias.shape, dtype=wide, device=bias.device) if wants[2] and bias is not None else None,
    )


def _compute_copy(tensor: Tensor) -> Tensor:
    """CPU products of bfloat16 and float16 are emulated, at a hundredth of the speed: they go through float32."""
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _index_on_cpu(labels: Tensor, ignore_index: int) -> Tensor | None:
    """On CPU, finding the labels costs no sync; on other devices the collator's ``label_index`` is the way."""
    if labels.device.type != "cpu":
        return None
    index = (labels != ignore_index).nonzero().squeeze(-1)
    return index if index.numel() < _COMPACT_BELOW * labels.numel() else None


def _chunk_loss(triton: bool) -> ChunkLoss:
    if not triton:
        return loss_and_grad
    from automodel_kernels.triton_ops.cross_entropy import loss_and_grad_ as triton_loss_and_grad

    return triton_loss_and_grad


def _chunk_loss_without_grad(triton: bool) -> ChunkLoss:
    if not triton:
        return loss_only
    from automodel_kernels.triton_ops.cross_entropy import loss_only as triton_loss_only

    return triton_loss_only


def _cast_or_empty(grad: Tensor | None, parameter: Tensor | None, like: Tensor) -> Tensor:
    if grad is None or parameter is None:
        return like.new_empty(0)
    return grad.to(parameter.dtype)

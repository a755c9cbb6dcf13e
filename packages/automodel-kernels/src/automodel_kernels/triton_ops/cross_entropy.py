"""Softmax cross-entropy of ``[N, V]`` logits: one online pass for the loss, one pass for the gradient.

``loss = lse - (1 - s) x_y - s mean(x) + z lse^2``;
``dx_v = g (p_v (1 + 2 z lse) - s / V - (1 - s) [v = y])``, times ``1 - (x_v / c)^2`` with a softcap.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from automodel_kernels.ops.labels import LossOptions
from automodel_kernels.triton_ops.common import launch, num_warps_for, round_to, rows_contiguous, tanh

MAX_BLOCK = 4096
NOTHING_IGNORED = -(2**62)


@triton.jit
def stats_kernel(
    logits,
    labels,
    peak_out,
    total_out,
    label_out,
    sum_out,
    row_stride,
    num_classes,
    ignore_index,
    softcap,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Maximum, sum of exponentials relative to it, logit of the label, and sum of logits of one row."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    peak = -float("inf")
    total = 0.0
    plain_sum = 0.0
    at_label = 0.0
    if label != ignore_index:
        base = logits + row * row_stride
        for start in range(0, num_classes, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            inside = cols < num_classes
            x = tl.load(base + cols, mask=inside, other=-float("inf")).to(tl.float32)
            if HAS_CAP:
                x = tl.where(inside, softcap * tanh(x / softcap), -float("inf"))
            new_peak = tl.maximum(peak, tl.max(x, 0))
            shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
            total = total * tl.exp(peak - shift) + tl.sum(tl.exp(x - shift), 0)
            plain_sum += tl.sum(tl.where(inside, x, 0.0), 0)
            at_label += tl.sum(tl.where(cols == label, x, 0.0), 0)
            peak = new_peak
    tl.store(peak_out + row, peak)
    tl.store(total_out + row, total)
    tl.store(label_out + row, at_label)
    tl.store(sum_out + row, plain_sum)


@triton.jit
def grad_kernel(
    logits,
    grad,
    labels,
    lse,
    scale,
    row_stride,
    grad_row_stride,
    num_classes,
    softcap,
    z_loss,
    smoothing,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of one row; formed in float32, rounded once. ``grad`` may be ``logits``. A zero scale reads no logit."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    cols = block * BLOCK + tl.arange(0, BLOCK)
    inside = cols < num_classes
    upstream = tl.load(scale + row)
    target = grad + row * grad_row_stride + cols
    if upstream == 0.0:
        tl.store(target, tl.zeros((BLOCK,), grad.dtype.element_ty), mask=inside)
    else:
        label = tl.load(labels + row)
        row_lse = tl.load(lse + row)
        x = tl.load(logits + row * row_stride + cols, mask=inside, other=0.0).to(tl.float32)
        slope = 1.0
        if HAS_CAP:
            squashed = tanh(x / softcap)
            x = softcap * squashed
            slope = 1.0 - squashed * squashed
        g = tl.exp(x - row_lse) * (1.0 + 2.0 * z_loss * row_lse) - smoothing / num_classes
        g = tl.where(cols == label, g - (1.0 - smoothing), g) * slope * upstream
        tl.store(target, round_to(g, grad.dtype.element_ty), mask=inside)


def loss_and_grad_(
    logits: Tensor, labels: Tensor, token_grad: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Token losses ``[N]`` and, over the logits, their gradient; ``token_grad`` is each token's upstream gradient."""
    losses, lse = _losses(logits, labels, options)
    valid = (labels != options.ignore_index).float()
    scale = valid if token_grad is None else torch.where(valid > 0, token_grad.float(), 0.0)
    _launch_grad(logits, logits, labels, lse, scale, options)
    return losses, logits


def loss_only(logits: Tensor, labels: Tensor, token_grad: Tensor | None, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Token losses ``[N]``; the logits are returned untouched."""
    return _losses(logits, labels, options)[0], logits


def token_losses(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Differentiable token losses ``[N]``, through the registered operator."""
    numbers = (options.ignore_index, options.softcap or 0.0, options.z_loss, options.label_smoothing)
    return token_cross_entropy(rows_contiguous(logits), labels.contiguous(), *numbers)[0]


def local_stats(logits: Tensor, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, sum of exponentials and target logit (0 for label -1) of this rank's columns, each ``[N]``."""
    return _stats(rows_contiguous(logits), local.contiguous(), NOTHING_IGNORED, None)[:3]


def grad_from_lse(logits: Tensor, local: Tensor, lse: Tensor, scale: Tensor) -> Tensor:
    """Gradient of this rank's columns given the log-normaliser over all ranks."""
    logits = rows_contiguous(logits)
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch_grad(logits, grad, local.contiguous(), lse, scale.float().contiguous(), LossOptions())
    return grad


@torch.library.custom_op("automodel::token_cross_entropy", mutates_args=())
def token_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float, z_loss: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Token losses and log-normalisers, float32 ``[N]`` each; ``softcap=0`` means none."""
    return _losses(logits, labels, LossOptions(ignore_index, softcap or None, z_loss, label_smoothing))


@token_cross_entropy.register_fake
def _(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float, z_loss: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    empty = logits.new_empty(logits.shape[:1], dtype=torch.float32)
    return empty, torch.empty_like(empty)


@torch.library.custom_op("automodel::token_cross_entropy_grad", mutates_args=())
def token_cross_entropy_grad(
    token_grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
) -> Tensor:
    """Gradient of the logits for one upstream gradient per token."""
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    scale = torch.where(labels != ignore_index, token_grad.float(), 0.0)
    options = LossOptions(ignore_index, softcap or None, z_loss, label_smoothing)
    _launch_grad(logits, grad, labels, lse, scale, options)
    return grad


@token_cross_entropy_grad.register_fake
def _(
    token_grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, output[1])


def _backward(ctx: Any, token_grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if token_grad is None:
        return (None,) * 6
    return token_cross_entropy_grad(token_grad.contiguous(), *ctx.saved_tensors, *ctx.numbers), *(None,) * 5


token_cross_entropy.register_autograd(_backward, setup_context=_setup)


def _losses(logits: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    peak, total, at_label, plain_sum = _stats(logits, labels, options.ignore_index, options.softcap)
    lse = peak + total.log()
    smoothing = options.label_smoothing
    losses = lse - (1.0 - smoothing) * at_label - (smoothing / logits.shape[1]) * plain_sum
    if options.z_loss:
        losses = losses + options.z_loss * lse.square()
    valid = labels != options.ignore_index
    return torch.where(valid, losses, 0.0), torch.where(valid, lse, 0.0)


def _stats(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num, num_classes = logits.shape
    outputs = [torch.empty(num, dtype=torch.float32, device=logits.device) for _ in range(4)]
    block = _block(num_classes)
    launch(
        stats_kernel,
        (num,),
        logits.device,
        logits,
        labels,
        *outputs,
        logits.stride(0),
        num_classes,
        ignore_index,
        softcap or 1.0,
        HAS_CAP=softcap is not None,
        BLOCK=block,
        num_warps=num_warps_for(block),
    )
    return outputs[0], outputs[1], outputs[2], outputs[3]


def _launch_grad(
    logits: Tensor, grad: Tensor, labels: Tensor, lse: Tensor, scale: Tensor, options: LossOptions
) -> None:
    num, num_classes = logits.shape
    block = _block(num_classes)
    launch(
        grad_kernel,
        (num, triton.cdiv(num_classes, block)),
        logits.device,
        logits,
        grad,
        labels,
        lse,
        scale,
        logits.stride(0),
        grad.stride(0),
        num_classes,
        options.softcap or 1.0,
        options.z_loss,
        options.label_smoothing,
        HAS_CAP=options.softcap is not None,
        BLOCK=block,
        num_warps=num_warps_for(block),
    )


def _block(num_classes: int) -> int:
    return max(16, min(MAX_BLOCK, triton.next_power_of_2(num_classes)))

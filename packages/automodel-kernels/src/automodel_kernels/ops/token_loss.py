"""The softmax of one chunk of logits in PyTorch: token losses, and the gradient of the logits in the same buffer."""

import torch
from torch import Tensor

from automodel_kernels.ops.labels import LossOptions
from automodel_kernels.reference import token_cross_entropy, wide_dtype


def loss_only(logits: Tensor, labels: Tensor, token_grad: Tensor | None, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Token losses ``[n]`` without a gradient (the second value is the untouched logits)."""
    losses = token_cross_entropy(
        logits,
        labels,
        ignore_index=options.ignore_index,
        softcap=options.softcap,
        z_loss=options.z_loss,
        label_smoothing=options.label_smoothing,
    )
    return losses, logits


def loss_and_grad(
    logits: Tensor, labels: Tensor, token_grad: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Token losses ``[n]`` and their gradient with respect to the logits, ``[n, V]``, written over the logits.

    Args:
        logits: ``[n, V]``; overwritten where they are float32 or float64, computed in float32 otherwise.
        labels: ``[n]``.
        token_grad: upstream gradient of each token, ``[n]``; None means 1.
    """
    valid = labels != options.ignore_index
    safe = labels.masked_fill(~valid, 0).unsqueeze(-1)
    wide = logits.to(wide_dtype(logits.dtype))
    losses, grad = (_plain if options.plain else _general)(wide, safe, options)
    if token_grad is None:
        scale = valid.to(grad.dtype)
    else:
        scale = torch.where(valid, token_grad.to(grad.dtype), 0.0)
    on_device = logits.device.type != "cpu"  # asking whether all are valid would wait for the device
    if on_device or token_grad is not None or not bool(valid.all()):
        grad.mul_(scale.unsqueeze(-1))
    return losses.squeeze(-1).masked_fill(~valid, 0.0), grad.to(logits.dtype)


def _plain(logits: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    torch.log_softmax(logits, dim=-1, out=logits)
    losses = logits.gather(-1, labels).neg()
    grad = logits.exp_()
    return losses, grad.scatter_add_(-1, labels, torch.full_like(losses, -1.0))


def _general(logits: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    slope = None
    if options.softcap is not None:
        squashed = torch.tanh(logits / options.softcap)
        slope = 1.0 - squashed.square()
        logits = squashed.mul_(options.softcap)
    lse = torch.logsumexp(logits, dim=-1, keepdim=True)
    smoothing = options.label_smoothing
    losses = lse - (1.0 - smoothing) * logits.gather(-1, labels) + options.z_loss * lse.square()
    if smoothing:
        losses = losses - smoothing * logits.mean(-1, keepdim=True)
    grad = logits.sub_(lse).exp_().mul_(1.0 + 2.0 * options.z_loss * lse).sub_(smoothing / logits.shape[-1])
    grad.scatter_add_(-1, labels, torch.full_like(lse, smoothing - 1.0))
    return losses, grad if slope is None else grad.mul_(slope)

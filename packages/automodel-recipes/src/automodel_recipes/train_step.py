"""One optimizer step: the same function for text, vision-language, full, LoRA and every parallel layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from automodel_recipes.batches import Batch, mark_last, to_device
from automodel_recipes.phase_times import FORWARD_BACKWARD, OPTIMIZER

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


@dataclass(frozen=True)
class StepMetrics:
    """What a step leaves behind, still on the device: reading it is the caller's host sync.

    ``loss`` is this rank's share of the global mean, and ``micro_losses`` are its parts; ``grad_norm``,
    ``num_label_tokens`` and ``skipped`` (1 where the gradients were not finite and nothing changed) are global.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    num_label_tokens: torch.Tensor
    learning_rate: float
    micro_losses: torch.Tensor
    skipped: torch.Tensor


def train_step(r: "BaseRecipe", micro_batches: Sequence[Batch]) -> StepMetrics:
    """Train on one global batch.

    Args:
        r: a recipe after ``setup``.
        micro_batches: this rank's part of the global batch, unshifted labels (contract C1).

    Returns: the step's metrics, on the device.
    """
    with r.phases(FORWARD_BACKWARD):
        # One denominator for the whole global batch, known before the first backward.
        batches = [r.prepare(to_device(batch, r.device)) for batch in micro_batches]
        num_label_tokens = r.parallel.sum_over_data(r.count_targets(batches))

        # Losses are sums / num_label_tokens and wrappers sum over ranks: nothing is rescaled.
        micro_losses = forward_backward(r, batches, num_label_tokens)
    learning_rate = r.lr_schedule.last_lr
    with r.phases(OPTIMIZER):
        grad_norm, skipped = _update(r)
    return StepMetrics(micro_losses.sum(), grad_norm, num_label_tokens, learning_rate, micro_losses, skipped)


def _update(r: "BaseRecipe") -> tuple[torch.Tensor, torch.Tensor]:
    """Change the weights by the gradients that are there; the gradients' norm, and 1 where they were not finite."""
    # A step whose gradients are not finite changes nothing but the data position and the learning-rate schedule.
    if r.loss_scaler is not None:
        r.loss_scaler.unscale_(r.model.parameters())
    grad_norm = r.parallel.clip_grad_norm(r.model, r.max_grad_norm)
    skipped = r.watchdog.take_step(r.optimizer, grad_norm)
    if r.loss_scaler is not None:
        r.loss_scaler.update(skipped)
    if r.ema is not None:
        r.ema.update(skipped)
    for update in r.built.after_step:
        update(r.model)
    r.lr_schedule.step()
    r.optimizer.zero_grad(set_to_none=True)
    return grad_norm, skipped


def forward_backward(r: "BaseRecipe", batches: Sequence[Batch], num_label_tokens: torch.Tensor) -> torch.Tensor:
    """Forward and backward of a step's micro-batches; returns this rank's loss of each, detached."""
    if r.parallel.pipeline is not None:
        # A loss over a smaller count is a scaled loss.
        scale = 1.0 if r.loss_scaler is None else r.loss_scaler.scale(torch.ones((), device=r.device))
        return r.parallel.pipeline.step(batches, r.loss_fn, num_label_tokens / scale) / scale
    losses = []
    for batch, is_last in mark_last(batches):
        sharded = r.parallel.shard_sequence(batch)
        with r.parallel.gradient_sync(r.model, enabled=is_last):
            loss = r.forward_loss(sharded, num_label_tokens)
            (loss if r.loss_scaler is None else r.loss_scaler.scale(loss)).backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def forward_only(r: "BaseRecipe", batches: Sequence[Batch], num_label_tokens: torch.Tensor) -> torch.Tensor:
    """This rank's loss of all batches together, without gradients; call it under ``torch.no_grad()``."""
    if r.parallel.pipeline is not None:
        return r.parallel.pipeline.evaluate(batches, r.loss_fn, num_label_tokens).sum()
    losses = [r.forward_loss(r.parallel.shard_sequence(batch), num_label_tokens).detach() for batch in batches]
    return torch.stack(losses).sum()

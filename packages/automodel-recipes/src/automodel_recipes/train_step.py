"""One optimizer step: the same function for text, vision-language, full, LoRA and every parallel layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from automodel_recipes.batches import Batch, mark_last, to_device

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


@dataclass(frozen=True)
class StepMetrics:
    """What a step leaves behind, still on the device: reading it is the caller's host sync.

    ``loss`` is this rank's share of the global mean; ``grad_norm`` is global; ``num_label_tokens`` is global.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    num_label_tokens: torch.Tensor
    learning_rate: float


def train_step(r: "BaseRecipe", micro_batches: Sequence[Batch]) -> StepMetrics:
    """Train on one global batch.

    Args:
        r: a recipe after ``setup``.
        micro_batches: this rank's part of the global batch, unshifted labels (contract C1).

    Returns: the step's metrics, on the device.
    """
    # One denominator for the whole global batch, known before the first backward.
    batches = [r.prepare(to_device(batch, r.device)) for batch in micro_batches]
    num_label_tokens = r.parallel.sum_over_data(r.count_targets(batches))

    # Losses are sums / num_label_tokens and wrappers sum over ranks: nothing is rescaled.
    loss = torch.zeros((), device=r.device)
    for batch, is_last in mark_last(batches):
        sharded = r.parallel.shard_sequence(batch)
        with r.parallel.gradient_sync(r.model, enabled=is_last):
            loss += forward_backward(r, sharded, num_label_tokens)

    learning_rate = r.lr_schedule.last_lr
    grad_norm = r.parallel.clip_grad_norm(r.model, r.max_grad_norm)
    r.guard.step(r.optimizer, grad_norm)  # not taken where the norm is not finite
    r.lr_schedule.step()
    r.optimizer.zero_grad(set_to_none=True)
    return StepMetrics(loss, grad_norm, num_label_tokens, learning_rate)


def forward_backward(r: "BaseRecipe", batch: Batch, num_label_tokens: torch.Tensor) -> torch.Tensor:
    """Forward and backward of one micro-batch; returns the detached loss."""
    loss = r.forward_loss(batch, num_label_tokens)
    loss.backward()
    return loss.detach()

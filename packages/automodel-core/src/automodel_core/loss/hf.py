"""Our losses under Hugging Face Trainer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from automodel_core.loss.labels import IGNORE_INDEX


def hf_loss(loss_fn: Any) -> Callable[..., torch.Tensor]:
    """A ``compute_loss_func`` for ``transformers.Trainer`` from a loss on logits.

    Args:
        loss_fn: a loss of contract C2 that works on logits, such as ``ChunkedCrossEntropy()``.

    Returns: ``f(outputs, labels, num_items_in_batch=None)``: labels are unshifted, as Trainer hands them over, and
        ``num_items_in_batch`` is Trainer's count over its gradient accumulation.
    Raises: TypeError: the loss takes hidden states, which Trainer does not hand over.
    """
    if getattr(loss_fn, "takes_hidden_states", False):
        raise TypeError(
            f"hf_loss got {type(loss_fn).__name__}, which works on hidden states: Trainer hands over logits. "
            "Use ChunkedCrossEntropy, or call forward_loss in your own compute_loss."
        )

    def compute_loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        return loss_fn(logits, F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX), num_items_in_batch)

    return compute_loss

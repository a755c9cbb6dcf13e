"""Count how often the most likely token is the label, while the loss is computed: one forward, no logits kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

IGNORE_INDEX = -100
_CHUNK_TOKENS = 1024


class CountingLoss:
    """A loss of contract C2 that also counts right predictions; the loss itself is the inner one's, untouched.

    Args:
        loss_fn: on logits, or with ``takes_hidden_states`` on hidden states and the head's weight.
        device: where ``correct`` is summed up, an int64 scalar of this rank.
    """

    def __init__(self, loss_fn: Any, device: torch.device) -> None:
        self.loss_fn = loss_fn
        self.takes_hidden_states = getattr(loss_fn, "takes_hidden_states", False)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, inputs: Any, shift_labels: Any, num_label_tokens: Any, **head: Any) -> torch.Tensor:
        loss = self.loss_fn(inputs, shift_labels, num_label_tokens, **head)
        if self.takes_hidden_states:
            self._count_hidden(whole(inputs), shift_labels, whole(head["weight"]), head.get("bias"))
        else:
            self._count(whole(inputs).argmax(-1), shift_labels)
        return loss

    def _count(self, predicted: torch.Tensor, labels: torch.Tensor) -> None:
        self.correct += (predicted == labels).sum()  # no token has the number of what is ignored

    def _count_hidden(self, hidden: Any, labels: Any, weight: Any, bias: Any) -> None:
        """Logits of a chunk of supervised tokens at a time; scales and soft caps do not change which is largest."""
        kept = labels.reshape(-1) != IGNORE_INDEX
        rows, wanted = hidden.reshape(-1, hidden.shape[-1])[kept], labels.reshape(-1)[kept]
        shift = None if bias is None else whole(bias).to(weight.dtype)
        for part, label in zip(rows.split(_CHUNK_TOKENS), wanted.split(_CHUNK_TOKENS), strict=True):
            self._count(torch.nn.functional.linear(part.to(weight.dtype), weight, shift).argmax(-1), label)


def whole(tensor: Any) -> torch.Tensor:
    """A tensor that every rank of its mesh has all of."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def counting(r: "BaseRecipe") -> Iterator[CountingLoss | None]:
    """Within the block the recipe's loss counts right predictions too; None for a recipe whose loss is no such loss."""
    if not r.counts_correct:
        yield None
        return
    plain, counted = r.loss_fn, CountingLoss(r.loss_fn, r.device)
    r.loss_fn = counted
    try:
        yield counted
    finally:
        r.loss_fn = plain

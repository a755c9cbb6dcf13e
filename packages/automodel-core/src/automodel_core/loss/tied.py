"""One gradient for a tied weight: the embedding's rows are added into the head's, so that ``[V, H]`` exists once.

Autograd would form the embedding's dense gradient beside the head's and add the two: ``V * H`` numbers more at the end
of backward, which on a CPU is the peak of a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor


class TiedGradient:
    """The head's share of a tied weight's gradient, on its way from the head's backward to the embedding's."""

    def __init__(self) -> None:
        self.num_lookups = 0
        self.head_share: torch.Tensor | None = None

    def take(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """What the head's backward returns: None once the embedding's backward is to return it all."""
        if gradient is None or self.num_lookups != 1:
            return gradient
        self.head_share = gradient
        return None


@contextmanager
def joined_gradient(model: Any) -> Iterator[TiedGradient | None]:
    """Within the block look-ups of a tied input embedding add into the head's gradient.

    Yields: where the loss leaves the head's share; None where the weight is not tied, is cast or sharded, does not
        train, or lies on a device where adding rows has no fixed order.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not _can_join(embedding, head):
        yield None
        return
    gradient = TiedGradient()

    def forward(ids: torch.Tensor) -> torch.Tensor:
        gradient.num_lookups += 1
        return _Lookup.apply(embedding.weight, ids, embedding.padding_idx, gradient)

    embedding.forward = forward
    try:
        yield gradient
    finally:
        del embedding.forward


def _can_join(embedding: Any, head: Any) -> bool:
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or embedding.weight is not head.weight:
        return False
    weight = embedding.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not isinstance(weight, DTensor)
    own_forward = "forward" in embedding.__dict__ or embedding.max_norm is not None or embedding.scale_grad_by_freq
    low_precision = torch.is_autocast_enabled(weight.device.type)
    return plain and weight.requires_grad and torch.is_grad_enabled() and not own_forward and not low_precision


class _Lookup(torch.autograd.Function):
    """``F.embedding`` whose backward adds its rows to the head's share, and returns both as one gradient."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding_idx: int | None, gradient: TiedGradient
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_idx, ctx.gradient, ctx.shape = padding_idx, gradient, weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        rows = grad_outputs[0].reshape(-1, ctx.shape[1])
        total, ctx.gradient.head_share = ctx.gradient.head_share, None
        if total is None:
            total = rows.new_zeros(ctx.shape)
        if ctx.padding_idx is not None:
            rows = rows.masked_fill((ids == ctx.padding_idx).reshape(-1, 1), 0.0)
        return total.index_add_(0, ids.reshape(-1), rows), None, None, None

"""Move batches to a device and count what is in them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

Batch = dict[str, Any]
T = TypeVar("T")

# Keys that describe a batch to the recipe and that no model takes.
_BOOKKEEPING = ("sample_ids",)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch without its bookkeeping keys, tensors on ``device`` (asynchronously from pinned memory)."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in _BOOKKEEPING
    }


def count_tokens(batch: Batch) -> int:
    """Tokens of a batch that are not padding; packed batches hold no padding but at their end."""
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return int(mask.sum())
    return int(batch["input_ids"].numel())


def sample_ids(batches: Sequence[Batch]) -> list[int]:
    """The data rows behind some batches, in order; empty where the collator does not name them."""
    return [int(i) for batch in batches if "sample_ids" in batch for i in batch["sample_ids"].flatten().tolist()]


def mark_last(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Each item with whether it is the last."""
    for index, item in enumerate(items):
        yield item, index == len(items) - 1


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most ``size`` items."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk

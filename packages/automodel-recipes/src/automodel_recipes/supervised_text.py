"""How many bytes of text the supervised tokens of a data set spell: the unit of bits per byte."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.batches import Batch

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

IGNORE_INDEX = -100


def num_supervised_bytes(batch: Batch, tokenizer: Any) -> int:
    """UTF-8 bytes of the text that a batch's labels spell, special tokens left out.

    Args:
        batch: unshifted labels ``[B, T]``, -100 ignored.
        tokenizer: decodes each supervised stretch by itself.
    """
    stretches = [ids for row in batch["labels"].tolist() for ids in _stretches(row)]
    texts = tokenizer.batch_decode(stretches, skip_special_tokens=True) if stretches else []
    return sum(len(text.encode()) for text in texts)


def _stretches(labels: list[int]) -> Iterator[list[int]]:
    stretch: list[int] = []
    for label in [*labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            stretch.append(label)
        elif stretch:
            yield stretch
            stretch = []


class ByteCount:
    """Counts the bytes of a data set as its batches go by, and remembers them: the rows of a set do not change."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def see(self, r: "BaseRecipe", name: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they are; the first time through, ``total(name)`` is known behind the last one."""
        if name in self._known:
            yield from batches
            return
        mine = 0
        for batch in batches:
            mine += num_supervised_bytes(batch, r.tokenizer)
            yield batch
        count = torch.tensor(mine, dtype=torch.int64, device=r.device)
        self._known[name] = int(r.parallel.sum_over_data(count))

    def total(self, name: int) -> int:
        """Bytes over all ranks."""
        return self._known[name]

"""A collate function with its processor, in a form that worker processes can be given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class BoundCollate:
    """``collate_fn(rows, processor, **keys)`` as a function of the rows."""

    collate_fn: Callable[..., dict[str, Any]]
    processor: Any
    keys: dict[str, Any]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """One batch, with ``sample_ids`` where rows carry an id (a pack: one of each document)."""
        batch = self.collate_fn(rows, self.processor, **self.keys)
        if "sample_ids" not in batch and all(isinstance(row, Mapping) and "sample_id" in row for row in rows):
            batch["sample_ids"] = torch.cat([torch.as_tensor(row["sample_id"]).reshape(-1) for row in rows])
        return batch

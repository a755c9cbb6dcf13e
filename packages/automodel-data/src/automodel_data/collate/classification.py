"""The padding collator for rows with one class each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from automodel_data.errors import DataError


def classification_collater(
    rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0, pad_seq_len_divisible: int | None = None
) -> dict[str, torch.Tensor]:
    """Pad rows on the right, by position.

    Args:
        rows: each ``{"input_ids": [int], "labels": [class]}``; a class of -100 is ignored.
        pad_token_id: what fills ``input_ids``.
        pad_seq_len_divisible: round the length up to a multiple of this.

    Returns: ``input_ids``, ``attention_mask`` ``[B, T]``, ``labels`` ``[B]``, all int64; ``sample_ids`` ``[B]`` where
        rows carry an id.
    Raises: DataError: no rows, or a row with other than one class.
    """
    if not rows:
        raise DataError("classification_collater got no rows: a batch needs at least one. Check the batch size.")
    for row in rows:
        if len(row["labels"]) != 1:
            raise DataError(f"a row has {len(row['labels'])} labels: it must have exactly one class, as [class].")
    multiple = pad_seq_len_divisible or 1
    length = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {
        "input_ids": torch.tensor(
            [[*row["input_ids"], *[pad_token_id] * (length - len(row["input_ids"]))] for row in rows]
        ),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
        "labels": torch.tensor([row["labels"][0] for row in rows]),
    }
    if "sample_id" in rows[0]:
        batch["sample_ids"] = torch.tensor([int(row["sample_id"]) for row in rows])
    return batch

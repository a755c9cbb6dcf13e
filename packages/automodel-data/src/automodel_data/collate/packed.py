"""The collator for packed rows: documents are told apart by position ids and lengths, never by a 2-D mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from automodel_data.collate.text import IGNORE_INDEX, label_index, round_up
from automodel_data.errors import DataError


def packed_collater(
    rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0, pad_seq_len_divisible: int | None = None
) -> dict[str, Any]:
    """Pad packed rows into one batch; the padding at a row's end is a document of its own.

    Args:
        rows: as `PackedDataset` gives them: ``input_ids``, ``labels``, ``position_ids``, ``seq_lens``, and optionally
            ``sample_id``.
        pad_token_id: fills ``input_ids``.
        pad_seq_len_divisible: round the length up to a multiple of this.

    Returns: ``input_ids``, ``labels``, ``position_ids`` ``[B, T]`` int64; ``seq_idx`` ``[B, T]`` int32, the number of
        the document within its row; ``cu_seq_lens_q``/``_k`` int32 over the flattened batch and ``max_length_q``/``_k``
        (ints); ``label_index``; and ``sample_ids``, one per packed document. There is no ``attention_mask``: with one,
        attention would cross documents.
    Raises: DataError: no rows, or ``seq_lens`` that do not add up.
    """
    if not rows:
        raise DataError("packed_collater got no rows: a batch needs at least one. Check the batch size.")
    length = round_up(max(len(row["input_ids"]) for row in rows), pad_seq_len_divisible)
    seq_lens = [_with_padding(row, length) for row in rows]
    flat = [n for row in seq_lens for n in row]
    cumulative = torch.tensor([0, *accumulate(flat)], dtype=torch.int32)
    batch: dict[str, Any] = {
        "input_ids": torch.tensor(
            [[*row["input_ids"], *[pad_token_id] * (length - len(row["input_ids"]))] for row in rows]
        ),
        "labels": torch.tensor([[*row["labels"], *[IGNORE_INDEX] * (length - len(row["labels"]))] for row in rows]),
        "position_ids": torch.tensor([[p for n in lens for p in range(n)] for lens in seq_lens]),
        "seq_idx": torch.tensor(
            [[d for d, n in enumerate(lens) for _ in range(n)] for lens in seq_lens], dtype=torch.int32
        ),
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative.clone(),
        "max_length_q": max(flat),
        "max_length_k": max(flat),
    }
    _ignore_first_tokens(batch["labels"], cumulative)
    batch["label_index"] = label_index(batch["labels"])
    if "sample_id" in rows[0]:
        batch["sample_ids"] = torch.tensor([i for row in rows for i in row["sample_id"]])
    return batch


def _with_padding(row: Mapping[str, Any], length: int) -> list[int]:
    lens, total = list(row["seq_lens"]), len(row["input_ids"])
    if sum(lens) != total or len(row["labels"]) != total:
        raise DataError(
            f"a packed row has {total} tokens, {len(row['labels'])} labels and seq_lens that sum to {sum(lens)}: they "
            f"must agree."
        )
    return [*lens, length - total] if length > total else lens


def _ignore_first_tokens(labels: torch.Tensor, cumulative: torch.Tensor) -> None:
    labels.view(-1)[cumulative[:-1].long()] = IGNORE_INDEX

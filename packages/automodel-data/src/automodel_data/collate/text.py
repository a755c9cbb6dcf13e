"""The padding collator for rows of token ids, packed rows included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from automodel_data.errors import DataError

IGNORE_INDEX = -100
_LABEL_INDEX_MULTIPLE = 8  # kernels and torch.compile see fewer distinct sizes
_OWN_KEYS = {"input_ids", "labels", "sample_id", "attention_mask"}


def default_collater(
    rows: Sequence[Mapping[str, Any]],
    pad_token_id: int = 0,
    pad_seq_len_divisible: int | None = None,
    *,
    labels_are_shifted: bool = False,
) -> dict[str, torch.Tensor]:
    """Pad rows on the right, by position, into one batch.

    Args:
        rows: each ``{"input_ids": [int], "labels": [int]}`` with *unshifted* labels, -100 where ignored. Other keys
            whose value is a list as long as ``input_ids`` are padded with 0. ``sample_id`` becomes ``sample_ids``.
            Packed rows go to `packed_collater`.
        pad_token_id: what fills ``input_ids``; never looked for, so it may equal a token that is trained.
        pad_seq_len_divisible: round the length up to a multiple of this.
        labels_are_shifted: the rows' labels are already shifted by one to the left (``labels[t]`` predicts from
            ``input_ids[t]``): they are shifted back.

    Returns: ``input_ids``, ``labels``, ``attention_mask`` ``[B, T]`` int64; ``label_index`` int64 ``[N]``, flat
        positions of labels in the *shifted* labels, padded to a multiple of 8 with a position that is ignored;
        ``sample_ids`` ``[B]`` where rows carry an id.
    Raises: DataError: no rows, lengths that disagree, or labels that are shifted already.
    """
    if not rows:
        raise DataError("default_collater got no rows: a batch needs at least one. Check the batch size.")
    if "seq_lens" in rows[0]:
        from automodel_data.collate.packed import packed_collater

        return packed_collater(rows, pad_token_id, pad_seq_len_divisible)
    columns = [_checked(row, labels_are_shifted=labels_are_shifted) for row in rows]
    length = round_up(max(len(row["input_ids"]) for row in columns), pad_seq_len_divisible)
    fill = {"input_ids": pad_token_id, "labels": IGNORE_INDEX}
    batch = {key: _padded([row[key] for row in columns], length, fill.get(key, 0)) for key in columns[0]}
    if "sample_id" in rows[0]:
        batch["sample_ids"] = torch.tensor([int(row["sample_id"]) for row in rows])
    batch["label_index"] = label_index(batch["labels"])
    return batch


def label_index(labels: torch.Tensor) -> torch.Tensor:
    """Flat positions ``[N]`` of the supervised entries in the shifted form of unshifted ``labels`` ``[B, T]``.

    Entry ``b * T + t`` is in it when position ``t`` of row ``b`` predicts a label. Padding entries point at the last
    position of the first row, which shifting always leaves without a label. Documents of a packed row must have their
    first label ignored.
    """
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    index = (shifted.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
    padded = max(_LABEL_INDEX_MULTIPLE, round_up(len(index), _LABEL_INDEX_MULTIPLE))
    return torch.nn.functional.pad(index, (0, padded - len(index)), value=labels.shape[1] - 1)


def _padded(rows: list[np.ndarray], length: int, value: int) -> torch.Tensor:
    out = np.full((len(rows), length), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def _checked(row: Mapping[str, Any], *, labels_are_shifted: bool) -> dict[str, np.ndarray]:
    """The row's token columns, ``attention_mask`` among them, after its lengths and label alignment were checked."""
    missing = {"input_ids", "labels"} - set(row)
    if missing:
        raise DataError(f"a row has the keys {sorted(row)}: {sorted(missing)} must be among them. Check the dataset.")
    ids, labels = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)
    if len(ids) != len(labels) or not len(ids):
        raise DataError(f"a row has {len(ids)} input_ids and {len(labels)} labels: both need the same length >= 1.")
    labels = _unshifted(ids, labels) if labels_are_shifted else _refuse_shifted(ids, labels)
    mask = np.asarray(row["attention_mask"]) if "attention_mask" in row else np.ones(len(ids), dtype=np.int64)
    columns = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    for key in row.keys() - _OWN_KEYS:
        value = np.asarray(row[key])
        if value.shape != ids.shape:
            raise DataError(f"row key {key!r} has length {len(value)}, input_ids {len(ids)}: make them equal.")
        columns[key] = value
    return columns


def _refuse_shifted(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    supervised = np.flatnonzero(labels != IGNORE_INDEX)
    if (labels[supervised] == ids[supervised]).all():
        return labels
    ahead = supervised[supervised + 1 < len(ids)]
    if (labels[ahead] == ids[ahead + 1]).all():
        raise DataError(
            "the labels of a row are already shifted (labels[t] == input_ids[t + 1] wherever one is supervised): "
            "batches carry unshifted labels, so the loss would train on the token after next. "
            "Set `labels_are_shifted: true` on the collator."
        )
    return labels


def _unshifted(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    back = np.concatenate([[IGNORE_INDEX], labels[:-1]])
    if ((back != IGNORE_INDEX) & (back != ids)).any():
        raise DataError(
            "labels_are_shifted=True, but labels[t] is not input_ids[t + 1] in a row. Leave the setting out."
        )
    return back


def round_up(n: int, multiple: int | None) -> int:
    return n if not multiple else -(-n // multiple) * multiple

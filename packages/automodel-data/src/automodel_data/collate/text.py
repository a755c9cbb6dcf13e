"""The padding collator for rows of token ids, packed rows included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    batch = {
        key: torch.tensor([[*row[key], *[fill.get(key, 0)] * (length - len(row[key]))] for row in columns])
        for key in columns[0]
    }
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


def _checked(row: Mapping[str, Any], *, labels_are_shifted: bool) -> dict[str, list[int]]:
    """The row's token columns, ``attention_mask`` among them, after its lengths and label alignment were checked."""
    missing = {"input_ids", "labels"} - set(row)
    if missing:
        raise DataError(f"a row has the keys {sorted(row)}: {sorted(missing)} must be among them. Check the dataset.")
    ids, labels = _as_list(row["input_ids"]), _as_list(row["labels"])
    if len(ids) != len(labels) or not ids:
        raise DataError(f"a row has {len(ids)} input_ids and {len(labels)} labels: both need the same length >= 1.")
    labels = _unshifted(ids, labels) if labels_are_shifted else _refuse_shifted(ids, labels)
    columns = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": _as_list(row.get("attention_mask", [1] * len(ids))),
    }
    for key in row.keys() - _OWN_KEYS:
        value = _as_list(row[key])
        if len(value) != len(ids):
            raise DataError(
                f"row key {key!r} has length {len(value)}, input_ids {len(ids)}: make them equal, or drop the key."
            )
        columns[key] = value
    return columns


def _refuse_shifted(ids: list[int], labels: list[int]) -> list[int]:
    supervised = [t for t, label in enumerate(labels) if label != IGNORE_INDEX]
    if not supervised or all(labels[t] == ids[t] for t in supervised):
        return labels
    if all(labels[t] == ids[t + 1] for t in supervised if t + 1 < len(ids)):
        raise DataError(
            "the labels of a row are already shifted (labels[t] == input_ids[t + 1] on every supervised position): "
            "batches "
            "carry unshifted labels, the loss would train on the token after next. Set `labels_are_shifted: true` on "
            "the collator."
        )
    return labels


def _unshifted(ids: list[int], labels: list[int]) -> list[int]:
    back = [IGNORE_INDEX, *labels[:-1]]
    if any(label not in (IGNORE_INDEX, token) for label, token in zip(back, ids)):
        raise DataError(
            "labels_are_shifted=True, but labels[t] is not input_ids[t + 1] in a row. Leave the setting out."
        )
    return back


def _as_list(value: Any) -> list[int]:
    return value.tolist() if hasattr(value, "tolist") else list(value)


def round_up(n: int, multiple: int | None) -> int:
    return n if not multiple else -(-n // multiple) * multiple

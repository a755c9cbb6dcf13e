"""Texts, or pairs of texts, each with one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from automodel_data.errors import DataError
from automodel_data.sources import open_source


class SequenceClassificationDataset:
    """Rows ``{"input_ids": [int], "labels": [class]}`` for a model with a classification head.

    Args:
        path_or_dataset_id: what `automodel_data.ChatDataset` reads: local files, a hub id, or loaded rows.
        tokenizer: a Hugging Face tokenizer; its own special tokens are added.
        text_column, text_pair_column, label_column: which columns to read.
        label_names: the names of the classes in order, where the column holds names; otherwise it holds 0, 1, ...
        seq_length: most tokens per row; longer rows are cut on the right, counted in ``num_truncated``.
        split, limit_dataset_samples: split of a hub dataset; use only the first rows.

    Raises: DataError: a missing column, an unknown class (both name the row), or no rows.
    """

    def __init__(
        self,
        path_or_dataset_id: Any,
        tokenizer: Any,
        *,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        label_names: Sequence[str] | None = None,
        seq_length: int | None = None,
        split: str = "train",
        limit_dataset_samples: int | None = None,
    ) -> None:
        source = open_source(path_or_dataset_id, split=split)
        stop = len(source) if limit_dataset_samples is None else min(limit_dataset_samples, len(source))
        columns = [column for column in (text_column, text_pair_column, label_column) if column is not None]
        self._names = {name: index for index, name in enumerate(label_names or ())}
        self.num_truncated = 0
        self._rows = []
        for index in range(stop):
            row, place = source[index], source.place(index)
            _check_columns(row, columns, place)
            texts = [str(row[column]) for column in columns[:-1]]
            ids = tokenizer(*texts)["input_ids"]
            if seq_length is not None and len(ids) > seq_length:
                ids, self.num_truncated = ids[:seq_length], self.num_truncated + 1
            self._rows.append({"input_ids": list(ids), "labels": [self._class(row[label_column], place)]})
        if not self._rows:
            raise DataError(f"{source.name} has no rows: there is nothing to classify. Check the path and the split.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]

    def _class(self, label: Any, place: tuple[str, int]) -> int:
        if self._names:
            if label in self._names:
                return self._names[label]
            raise DataError(f"{_at(place)}: class {label!r}; label_names are {', '.join(map(repr, self._names))}.")
        if isinstance(label, bool | int) and label >= 0:
            return int(label)
        raise DataError(f"{_at(place)}: class {label!r} is not a number from 0 up. Give label_names for named classes.")


def _check_columns(row: Mapping[str, Any], columns: Sequence[str], place: tuple[str, int]) -> None:
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise DataError(f"{_at(place)}: missing {', '.join(missing)}; the row has {', '.join(map(str, row))}.")


def _at(place: tuple[str, int]) -> str:
    return f"{place[0]}, row {place[1]}"

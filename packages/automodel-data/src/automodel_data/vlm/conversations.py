"""Lazily built conversations over any source of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automodel_data.errors import BadRow
from automodel_data.sources import open_source
from automodel_data.vlm.rows import RowKeys, VLMDataset


class Conversations:
    """Map-style rows ``{"conversation": [...]}`` with Hugging Face content parts; media stay undecoded.

    Args:
        source: random access to raw rows, with ``place`` (`sources.open_source`).
        convert: raw row -> ``{"conversation": ...}`` or any row that `conversation.parse_row` reads.
        limit: use only the first rows.
    """

    def __init__(self, source: Any, convert: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, limit: int | None):
        self.source, self.convert = source, convert
        self._length = len(source) if limit is None else min(limit, len(source))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return self.convert(self.source[index])

    def name_of(self, index: int) -> str:
        """Where a row stands, for error messages."""
        source, line = self.source.place(index)
        return f"{source}:{line}"


def open_rows(path_or_dataset: Any, *, split: str, name: str | None = None) -> Any:
    """A source whose image column is not decoded on access: bytes and paths only.

    Raises: DataError: nothing is found there, or it is empty.
    """
    source = open_source(path_or_dataset, split=split, name=name)
    for part in getattr(source, "parts", [source]):
        if getattr(getattr(part, "rows", None), "features", None):
            part.rows = _undecoded(part.rows)
    return source


def _undecoded(dataset: Any) -> Any:
    """The dataset with bytes and paths in place of decoded media, in lists and objects too."""
    for name, feature in dataset.features.items():
        if (raw := _raw(feature)) != feature:
            dataset = dataset.cast_column(name, raw)
    return dataset


def _raw(feature: Any) -> Any:
    from datasets import Audio, Image

    if isinstance(feature, (Image, Audio)):
        return replace(feature, decode=False)
    if isinstance(feature, Mapping):
        return {name: _raw(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_raw(inner) for inner in feature]
    inner = getattr(feature, "feature", None)
    return feature if inner is None else replace(feature, feature=_raw(inner))


def finish(rows: Conversations, processor: Any, path_or_dataset: Any, keys: RowKeys) -> Conversations | VLMDataset:
    """The conversations themselves, or with a processor the rows that train a model on them."""
    if processor is None:
        return rows
    keys.setdefault("media_root", own_directory(path_or_dataset))
    return VLMDataset(rows, processor, **keys)


def own_directory(path_or_dataset: Any) -> Path | None:
    """Where the rows lie, if that is one local directory."""
    paths = path_or_dataset if isinstance(path_or_dataset, (list, tuple)) else [path_or_dataset]
    if not all(isinstance(path, (str, Path)) and Path(path).exists() for path in paths):
        return None
    found = {Path(path).resolve() for path in paths}
    directories = {path if path.is_dir() else path.parent for path in found}
    return directories.pop() if len(directories) == 1 else None


def columns(row: Mapping[str, Any], *names: str) -> list[Any]:
    """The values of columns that a dataset must have. Raises: BadRow: one is missing or null."""
    for name in names:
        if row.get(name) is None:
            raise BadRow(f"the row has no {name!r}", hint=f"It has {', '.join(map(repr, row))}.")
    return [row[name] for name in names]


def question_and_answer(question: str, answer: str, *media: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation of one exchange about some media."""
    user = [*media, {"type": "text", "text": question}]
    return {
        "conversation": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    }

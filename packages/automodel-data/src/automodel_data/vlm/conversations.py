"""Lazily built conversations over any source of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    if getattr(getattr(source, "rows", None), "features", None):
        source.rows = _undecoded(source.rows)
    return source


def _undecoded(dataset: Any) -> Any:
    from datasets import Audio, Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
    return dataset


def finish(rows: Conversations, processor: Any, path_or_dataset: Any, keys: RowKeys) -> Conversations | VLMDataset:
    """The conversations themselves, or with a processor the rows that train a model on them."""
    if processor is None:
        return rows
    root = None
    if isinstance(path_or_dataset, (str, Path)) and Path(path_or_dataset).is_file():
        root = Path(path_or_dataset).resolve().parent
    keys.setdefault("media_root", root)
    return VLMDataset(rows, processor, **keys)


def question_and_answer(question: str, answer: str, *media: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation of one exchange about some media."""
    user = [*media, {"type": "text", "text": question}]
    return {
        "conversation": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    }

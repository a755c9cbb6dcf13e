"""Raw rows of a file or hub dataset, each with its place, so that an error can name it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_data.errors import BadRow, DataError


class JsonLines:
    """Random access to the lines of a JSONL file: memory-mapped, 8 bytes of index per row; blank lines do not count.

    Raises: DataError: the file is missing or empty.
    """

    def __init__(self, path: str | Path, *, max_row_bytes: int = 64 << 20) -> None:
        self.name, self._max_row_bytes = str(path), max_row_bytes
        self._path = Path(path)
        self._starts, self._lines = _line_index(self._path)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The parsed row. Raises: BadRow: not UTF-8, not JSON, not an object, or too long."""
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self._starts[index])
        end = self._map.find(b"\n", start)
        end = len(self._map) if end < 0 else end
        if end - start > self._max_row_bytes:
            raise BadRow(f"row of more than {self._max_row_bytes} bytes")
        return parse_json_row(self._map[start:end])

    def line(self, index: int) -> int:
        """1-based line number of a row."""
        return int(self._lines[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # worker processes map the file themselves


def parse_json_row(line: bytes) -> dict[str, Any]:
    """One JSON object per line. Raises: BadRow."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"invalid UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"broken JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadRow(f"the row is {type(row).__name__}, not an object")
    return row


def _line_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} is not a file. Give an existing .jsonl file, or a hub id such as org/name.")
    starts, lines, position = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                starts.append(position)
                lines.append(number)
            position += len(line)
    if not starts:
        raise DataError(f"{path} is empty: at least one row is needed. Check how the file was written.")
    return np.array(starts, dtype=np.int64), np.array(lines, dtype=np.int64)


def rows_with_errors(source: Any) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """``(index, row)`` over a source, with the `BadRow` in place of a row that cannot be read."""
    for i in range(len(source)):
        try:
            yield i, source[i]
        except BadRow as error:
            yield i, error


class HubRows:
    """Rows of a Hugging Face ``datasets.Dataset``."""

    def __init__(self, dataset: Any, *, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def line(self, index: int) -> int:
        return index + 1


def open_source(path_or_dataset_id: Any, *, split: str = "train", name: str | None = None) -> Any:
    """Random access to raw rows.

    Args:
        path_or_dataset_id: a local ``.jsonl`` file, a hub id (``org/name`` or ``org/name@revision``), or a
            ``datasets.Dataset`` or list of dicts that is already there.
        split, name: split and configuration of a hub dataset.

    Raises: DataError: nothing is found there, or it is empty.
    """
    if isinstance(path_or_dataset_id, (str, Path)):
        path = Path(path_or_dataset_id)
        if path.suffix or path.exists():
            return JsonLines(path)
        return HubRows(_load_hub(str(path_or_dataset_id), split=split, name=name), name=str(path_or_dataset_id))
    return HubRows(path_or_dataset_id, name=type(path_or_dataset_id).__name__)


def _load_hub(dataset_id: str, *, split: str, name: str | None) -> Any:
    from datasets import load_dataset

    repo, _, revision = dataset_id.partition("@")
    try:
        return load_dataset(repo, name, split=split, revision=revision or None)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{dataset_id!r} cannot be loaded: {error}. Give a local file, or a hub id that can be reached."
        ) from error

"""Random access to the rows of a JSON-lines file, with the line number of each."""

from __future__ import annotations

import json
import mmap
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from automodel_data.errors import BadRow, DataError


class JsonLines:
    """The lines of a JSONL file: memory-mapped, 16 bytes of index per row; blank lines do not count.

    Args:
        path: an uncompressed local file.
        name: what errors call it; the path where left out.
        max_row_bytes: a longer line is a bad row, before it is parsed.

    Raises: DataError: the file is missing or empty.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, max_row_bytes: int = 64 << 20) -> None:
        self.name, self._max_row_bytes = name or str(path), max_row_bytes
        self.path = Path(path)
        self._starts, self._lines = _line_index(self.path, self.name)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The parsed row. Raises: BadRow: not UTF-8, not JSON, not an object, or too long."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self._starts[index])
        end = self._map.find(b"\n", start)
        end = len(self._map) if end < 0 else end
        if end - start > self._max_row_bytes:
            raise BadRow(f"the row has more than {self._max_row_bytes} bytes")
        return parse_json_row(self._map[start:end])

    def place(self, index: int) -> tuple[str, int]:
        """File and 1-based line of a row."""
        return self.name, int(self._lines[index])

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


def _line_index(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    starts, lines, position = array("q"), array("q"), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                starts.append(position)
                lines.append(number)
            position += len(line)
    if not starts:
        raise DataError(f"{name} is empty: at least one row is needed. Check how the file was written.")
    return np.frombuffer(starts, dtype=np.int64), np.frombuffer(lines, dtype=np.int64)

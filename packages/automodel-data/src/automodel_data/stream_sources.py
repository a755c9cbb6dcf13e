"""Sources that are read from the front: rows of files here, or of the hub as they arrive.

A stream source has ``name``, ``num_rows`` (None where that is not known), ``place(row)`` and ``read(position)``. What
the last one gives iterates over ``(row, raw row)`` and knows where a row begins: ``position(row)``, a dict of integers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from automodel_data.errors import BadRow, DataError
from automodel_data.sources import is_hub_id, open_source, read_errors, rows_with_errors

Position = Mapping[str, Any]
START: Position = {"row": 0}


def open_stream(path_or_dataset_id: Any, *, split: str = "train", name: str | None = None) -> Any:
    """A stream source of whatever `sources.open_source` reads.

    Hub ids are streamed by ``datasets``, nothing is downloaded beforehand; so is a ``datasets.IterableDataset``.
    Everything else is opened for random access, which costs no more memory than reading from the front.

    Raises: DataError: nothing is found there, or it is empty.
    """
    given = path_or_dataset_id
    if hasattr(given, "num_shards") and not hasattr(given, "__len__"):  # a datasets.IterableDataset
        return HubRows([given], name=type(given).__name__)
    if is_hub_id(given):
        return _open_hub(str(given), split=split, name=name)
    return FileRows(open_source(given, split=split, name=name))


class FileRows:
    """The rows of a source with random access, one after the other."""

    def __init__(self, source: Any) -> None:
        self.source, self.name = source, source.name
        self.num_rows: int | None = len(source)
        self.place = source.place

    def read(self, position: Position) -> _FileReader:
        return _FileReader(self.source, position["row"])


class _FileReader:
    def __init__(self, source: Any, start: int) -> None:
        self._source, self._start = source, start

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return rows_with_errors(self._source, self._start)

    def position(self, row: int) -> dict[str, int]:
        return {"row": row}


class HubRows:
    """Rows of ``datasets.IterableDataset`` parts, such as the shards of a hub dataset, one part after the other.

    A position names the part and how many of its rows are behind, so going on reads at most one part again.
    """

    num_rows: int | None = None

    def __init__(self, parts: list[Any], *, name: str) -> None:
        self.parts, self.name = parts, name

    def place(self, row: int) -> tuple[str, int]:
        return self.name, row + 1

    def read(self, position: Position) -> _HubReader:
        return _HubReader(self, position)


class _HubReader:
    def __init__(self, rows: HubRows, position: Position) -> None:
        self._rows, self._row = rows, position["row"]
        self._skip = position.get("part_row", position["row"])
        # The parts that were begun, and the first row of each.
        self._parts, self._firsts = [position.get("part", 0)], [self._row - self._skip]

    def position(self, row: int) -> dict[str, int]:
        at = bisect_right(self._firsts, row) - 1
        return {"row": row, "part": self._parts[at], "part_row": row - self._firsts[at]}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        row, part, skip = self._row, self._parts[0], self._skip
        while part < len(self._rows.parts):
            for value in islice(self._read_part(part), skip, None):
                yield row, value if isinstance(value, dict) else BadRow(f"the row is {type(value).__name__}")
                row += 1
            part, skip = part + 1, 0
            self._parts.append(part)
            self._firsts.append(row)

    def _read_part(self, part: int) -> Iterator[Any]:
        rows, num_read = iter(self._rows.parts[part]), 0
        while True:
            try:
                value = next(rows)
            except StopIteration:
                return
            except read_errors() as error:
                raise DataError(
                    f"{self._rows.name} breaks off after row {num_read} of part {part + 1} of {len(self._rows.parts)}: "
                    f"{error.__cause__ or error}. Check the connection and the file; a run goes on from its last "
                    "checkpoint."
                ) from error
            num_read += 1
            yield value


def _open_hub(dataset_id: str, *, split: str, name: str | None) -> HubRows:
    from datasets import load_dataset

    repo, _, revision = dataset_id.partition("@")
    try:
        stream = load_dataset(repo, name, split=split, revision=revision or None, streaming=True)
    except read_errors() as error:
        raise DataError(
            f"{dataset_id!r} is no file here, and the hub has no such dataset: {error}. Check the path or id."
        ) from error
    parts = [stream.shard(num_shards=stream.num_shards, index=i) for i in range(stream.num_shards)]
    return HubRows(parts, name=dataset_id)

"""Encoded rows as a map-style dataset, with the account of how they came about."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from automodel_data.encode import TokenRow

_ROWS_PER_BATCH = 1000
_TOKEN_COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class BadRowRecord:
    """Why one row was left out."""

    source: str
    row: int
    """Line, row or document in the source, from 0."""
    why: str
    path: str = ""
    """Where in the row, as a JSON pointer."""

    @property
    def line(self) -> int:
        """The same from 1, as editors count."""
        return self.row + 1

    def __str__(self) -> str:
        # Reasons may quote the row: control characters must not reach a terminal.
        text = f"{self.source}:{self.line}: " + ": ".join(part for part in (self.path, self.why) if part)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class EncodeReport:
    """What happened to the rows of a source; counts are rows unless they say tokens."""

    num_rows: int = 0
    num_kept: int = 0
    num_bad_unlisted: int = 0
    """Bad rows beyond those that ``bad_rows`` lists."""
    num_truncated: int = 0
    num_too_long: int = 0
    """Rows dropped because they exceed ``seq_length``."""
    num_tokens: int = 0
    num_label_tokens: int = 0
    num_tokens_cut: int = 0
    first_hint: str = ""
    bad_rows: list[BadRowRecord] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        return len(self.bad_rows) + self.num_bad_unlisted

    def reasons(self) -> dict[str, int]:
        """Bad rows by reason, most frequent first."""
        return dict(Counter(record.why for record in self.bad_rows).most_common())

    def add(self, other: EncodeReport) -> None:
        """Count in what another part of the source reports."""
        for key, value in asdict(other).items():
            if isinstance(value, int):
                setattr(self, key, getattr(self, key) + value)
        self.first_hint = self.first_hint or other.first_hint
        self.bad_rows += other.bad_rows

    def write_bad_rows(self, path: str | Path) -> None:
        """One JSON object per bad row: ``source``, ``row`` (from 0), ``line`` (from 1), ``why``, ``path``."""
        lines = [json.dumps({**asdict(record), "line": record.line}) + "\n" for record in self.bad_rows]
        Path(path).write_text("".join(lines), encoding="utf-8")


class TokenDataset:
    """Map-style rows of token ids.

    ``dataset[i]`` is ``{"input_ids": list[int], "labels": list[int]}`` with unshifted labels; ``lengths`` is an int64
    array of tokens per row, ``source_rows`` the row number each came from, ``report`` an `EncodeReport`.
    """

    def __init__(self, table: Any, *, report: EncodeReport) -> None:
        self._table, self.report = table, report
        self._ends = list(accumulate(len(chunk) for chunk in table.data.column("input_ids").chunks))
        # Reading through views of the Arrow memory is an order of magnitude faster than through ``datasets``.
        self._views: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a dataset with {len(self)} rows")
        chunk, row = self._locate(int(index) % len(self))
        if chunk not in self._views:
            self._views[chunk] = {key: _list_views(self._table.data.column(key).chunk(chunk)) for key in _TOKEN_COLUMNS}
        views = self._views[chunk]
        return {key: tokens[starts[row] : starts[row + 1]].tolist() for key, (starts, tokens) in views.items()}

    def _locate(self, index: int) -> tuple[int, int]:
        """Arrow chunk that holds a row, and the row's index there."""
        chunk = bisect_right(self._ends, index)
        return chunk, index - (self._ends[chunk - 1] if chunk else 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": {}}  # worker processes look at the table themselves

    def hf_dataset(self) -> Any:
        """The rows as a Hugging Face ``Dataset`` of ``input_ids`` and ``labels``, for trainers that insist on one."""
        return self._table.with_format(None).select_columns(["input_ids", "labels"])

    @property
    def lengths(self) -> np.ndarray:
        import pyarrow.compute as pc

        return pc.list_value_length(self._table.data.column("input_ids")).to_numpy().astype(np.int64)

    @property
    def source_rows(self) -> np.ndarray:
        return self._table.data.column("source_row").to_numpy()


def _list_views(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row starts (one more than rows) and values of an Arrow list array, without a copy."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def token_table(rows: Iterable[tuple[int, TokenRow]]) -> Any:
    """``(source row, TokenRow)`` pairs as a Hugging Face ``Dataset`` in memory."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    batches = list(_record_batches(rows))
    table = pa.Table.from_batches(batches, schema=_schema())
    # Without a fingerprint of ours, ``datasets`` pickles and hashes every token.
    return Dataset(table, fingerprint=generate_random_fingerprint()).with_format("numpy")


def write_tokens(directory: Path, rows: Iterable[tuple[int, TokenRow]], report: EncodeReport) -> None:
    """Stream rows to an Arrow file, then write the report they filled in; memory stays that of one batch."""
    import pyarrow as pa

    with pa.OSFile(str(directory / "tokens.arrow"), "wb") as file, pa.ipc.new_stream(file, _schema()) as writer:
        for batch in _record_batches(rows):
            writer.write_batch(batch)
    counts = {key: value for key, value in asdict(report).items() if key != "bad_rows"}
    (directory / "report.json").write_text(json.dumps(counts), encoding="utf-8")
    report.write_bad_rows(directory / "bad_rows.jsonl")


def read_tables(directory: Path) -> tuple[Any, EncodeReport]:
    """What `write_tokens` wrote, memory-mapped."""
    from datasets import Dataset

    counts = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    lines = (directory / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    report = EncodeReport(**counts, bad_rows=[_record(json.loads(line)) for line in lines])
    return Dataset.from_file(str(directory / "tokens.arrow")).with_format("numpy"), report


def _record(values: dict[str, Any]) -> BadRowRecord:
    return BadRowRecord(values["source"], values["row"], values["why"], values["path"])


def _schema() -> Any:
    import pyarrow as pa

    tokens = pa.list_(pa.int32())
    return pa.schema([("input_ids", tokens), ("labels", tokens), ("source_row", pa.int64())])


def _record_batches(rows: Iterable[tuple[int, TokenRow]]) -> Iterator[Any]:
    import pyarrow as pa

    iterator = iter(rows)
    while pairs := list(islice(iterator, _ROWS_PER_BATCH)):
        lengths = [0, *(len(row.input_ids) for _, row in pairs)]
        offsets = pa.array(np.cumsum(lengths), type=pa.int32())
        columns = [
            pa.ListArray.from_arrays(offsets, np.concatenate([row.input_ids for _, row in pairs])),
            pa.ListArray.from_arrays(offsets, np.concatenate([row.labels for _, row in pairs])),
            pa.array([i for i, _ in pairs], type=pa.int64()),
        ]
        yield pa.record_batch(columns, schema=_schema())

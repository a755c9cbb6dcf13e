"""Encoded rows as a map-style dataset, with the account of how they came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from automodel_data.encode import TokenRow


@dataclass(frozen=True)
class BadRowRecord:
    """Why one row was left out."""

    source: str
    row: int
    """Row number in the source, from 0; for a line-based file the line is ``row + 1``."""
    why: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.row + 1}: " + ": ".join(part for part in (self.path, self.why) if part)


@dataclass
class EncodeReport:
    """What happened to the rows of a source; counts are rows unless they say tokens."""

    num_rows: int = 0
    num_kept: int = 0
    num_truncated: int = 0
    num_too_long: int = 0
    """Rows dropped because they exceed ``seq_length``."""
    num_tokens: int = 0
    num_label_tokens: int = 0
    num_tokens_cut: int = 0
    bad_rows: list[BadRowRecord] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """Bad rows by reason, most frequent first."""
        return dict(Counter(record.why for record in self.bad_rows).most_common())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncodeReport:
        return cls(**{**values, "bad_rows": [BadRowRecord(**record) for record in values["bad_rows"]]})


class TokenDataset:
    """Map-style rows of token ids.

    ``dataset[i]`` is ``{"input_ids": list[int], "labels": list[int]}`` with unshifted labels; ``lengths`` is an int64
    array of tokens per row, ``source_rows`` the row number each came from, ``report`` an `EncodeReport`.
    """

    def __init__(self, table: Any, *, report: EncodeReport, fingerprint: str = "") -> None:
        self._table = table
        self.report, self.fingerprint = report, fingerprint

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a dataset with {len(self)} rows")
        row = self._table[int(index) % len(self)]
        return {"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()}

    @property
    def lengths(self) -> np.ndarray:
        import pyarrow.compute as pc

        return pc.list_value_length(self._table.data.column("input_ids")).to_numpy().astype(np.int64)

    @property
    def source_rows(self) -> np.ndarray:
        return self._table.data.column("source_row").to_numpy()


def token_table(rows: Iterable[tuple[int, TokenRow]]) -> Any:
    """``(source row, TokenRow)`` pairs as a Hugging Face ``Dataset`` in memory."""
    import pyarrow as pa
    from datasets import Dataset

    pairs = list(rows)
    columns = {
        "input_ids": pa.array([row.input_ids for _, row in pairs], type=pa.list_(pa.int32())),
        "labels": pa.array([row.labels for _, row in pairs], type=pa.list_(pa.int32())),
        "source_row": pa.array([i for i, _ in pairs], type=pa.int64()),
    }
    return Dataset(pa.table(columns)).with_format("numpy")

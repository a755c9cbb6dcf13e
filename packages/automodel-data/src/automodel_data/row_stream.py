"""What streams of encoded rows share, whatever a row holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from torch.utils.data import IterableDataset

from automodel_data.build import RowPolicy, log_report, too_many_bad_rows
from automodel_data.store import EncodeReport
from automodel_data.stream_sources import START, Position

_ROWS_TO_JUDGE = 1000  # a stream cannot be judged whole beforehand, and not by its first few rows


class RowStream(IterableDataset):
    """Rows read from a source as they are trained on. Subclasses give ``rows``; ``report`` accounts for those read.

    Args:
        source: a stream source (`stream_sources`).
        policy: what happens to bad and over-long rows.
        limit: use only the first rows.
    """

    def __init__(self, source: Any, *, policy: RowPolicy, limit: int | None) -> None:
        self.source, self.name, self._policy, self._limit = source, source.name, policy, limit
        known = [n for n in (source.num_rows, limit) if n is not None]
        self.num_source_rows = min(known) if source.num_rows is not None else None
        self.report = EncodeReport()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for row, _ in self.rows())

    def start(self) -> Position:
        return START

    def rows(
        self, position: Position = START, *, num_workers: int = 0
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows from ``position`` on, each with the position behind it."""
        raise NotImplementedError

    def _within_limit(self, reader: Any) -> Iterator[tuple[int, Any]]:
        return takewhile(lambda item: self._limit is None or item[0] < self._limit, reader)

    def _refuse_too_many_bad_rows(self) -> None:
        report, allowed = self.report, self._policy.max_bad_fraction
        if report.num_rows >= _ROWS_TO_JUDGE and report.num_bad > allowed * report.num_rows:
            raise too_many_bad_rows(report, policy=self._policy, name=self.name)

    def _log_report(self) -> None:
        """Say what became of the rows, where something did."""
        if self.report.num_bad or self.report.num_too_long or self.report.num_truncated:
            log_report(self.report, policy=self._policy, name=self.name)

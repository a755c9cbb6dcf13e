"""Encode rows chunk by chunk, in this process or in workers, and always in their order.

Workers are those of torch's ``DataLoader``: they end when their parent is killed, prefetch a bounded number of chunks
and hand them over in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from automodel_data.encode import TokenRow
from automodel_data.errors import DataError
from automodel_data.sources import rows_with_errors
from automodel_data.store import EncodeReport

if TYPE_CHECKING:
    from automodel_data.build import RowEncoder

Chunk = tuple[int, int] | list[tuple[int, Any]]
"""Bounds of rows that a worker reads itself, or numbered rows that were read for it."""


def encoded_chunks(
    chunks: Iterable[Chunk], source: Any, row_encoder: RowEncoder, report: EncodeReport, *, num_workers: int
) -> Iterator[tuple[int, TokenRow]]:
    """``(source row, TokenRow)`` of every usable row of the chunks, encoded by ``num_workers`` processes.

    Raises: DataError: as `RowEncoder.rows`.
    """
    loader: DataLoader = DataLoader(
        _Encoder(source, row_encoder),
        sampler=chunks,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # one of its own: the global one stays as it is
    )
    for result in loader:
        if isinstance(result, DataError):
            raise result
        rows, part = result
        report.add(part)
        yield from rows


class _Encoder:
    """A dataset whose index is a chunk and whose item is that chunk, encoded, with its report."""

    def __init__(self, source: Any, row_encoder: RowEncoder) -> None:
        self._source, self._row_encoder = source, row_encoder

    def __getitem__(self, chunk: Chunk) -> tuple[list[tuple[int, TokenRow]], EncodeReport] | DataError:
        numbered = iter(chunk) if isinstance(chunk, list) else rows_with_errors(self._source, *chunk)
        report = EncodeReport()
        try:
            return list(self._row_encoder.rows(numbered, self._source, report)), report
        except DataError as error:
            return error  # torch would wrap a raised one into a report of its worker


def _unchanged(item: Any) -> Any:
    return item

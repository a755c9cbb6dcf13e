"""Vision-language rows that are read as they are trained on: no survey before, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Unpack

from automodel_data.errors import BadRow, DataError
from automodel_data.row_stream import RowStream
from automodel_data.store import BadRowRecord, EncodeReport
from automodel_data.stream_sources import START, Position, open_stream
from automodel_data.vlm.conversation import parse_row
from automodel_data.vlm.conversations import own_directory
from automodel_data.vlm.encoder import MediaRowEncoder
from automodel_data.vlm.rows import RowKeys

_MAX_RECORDS = 1000


class VLMIterableDataset(RowStream):
    """The rows of `make_llava_dataset` in the same order, streamed: hub sets without a download before.

    A row carries ``decode``, which gives it with its tensors; the collate calls it, so that of a stream that every rank
    reads, each rank decodes its own rows only.

    Args:
        path_or_dataset: what `stream_sources.open_stream` reads.
        processor: a Hugging Face processor, or `ProcessorParts`.
        split, name: split and configuration of a hub dataset.
        limit_dataset_samples: use only the first rows.
        keys: settings of `MediaRowEncoder`.
    """

    def __init__(
        self,
        path_or_dataset: Any,
        processor: Any,
        *,
        split: str = "train",
        name: str | None = None,
        limit_dataset_samples: int | None = None,
        **keys: Unpack[RowKeys],
    ) -> None:
        source = open_stream(path_or_dataset, split=split, name=name)
        _leave_encoded(source)
        keys.setdefault("media_root", own_directory(path_or_dataset))
        self.encoder = MediaRowEncoder(processor, **keys)
        super().__init__(source, policy=self.encoder.policy, limit=limit_dataset_samples)
        self.adapter, self.report = self.encoder.adapter, self.encoder.report

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """The kinds of media of the rows read so far."""
        return self.encoder.media_kinds

    def rows(
        self, position: Position = START, *, num_workers: int = 0
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows from ``position`` on, each with the position behind it.

        Raises: DataError: ``num_workers`` above 0; a bad row under ``on_bad="fail"``, or more of them than
            ``max_bad_fraction`` once a thousand rows were read; a source that breaks off.
        """
        if num_workers:
            raise DataError(
                f"dataloader.num_workers={num_workers}: a stream of media is decoded in place. Set it to 0."
            )
        if position["row"] == 0:
            self.report = self.encoder.report = EncodeReport()
        reader = self.source.read(position)
        for i, raw in self._within_limit(reader):
            row = self._row(i, raw)
            self._refuse_too_many_bad_rows()
            if row is not None:
                yield {**row, "sample_id": i}, reader.position(i + 1)
        self._log_report()

    def _row(self, index: int, raw: Any) -> dict[str, Any] | None:
        source, line = self.source.place(index)
        name = f"{source}:{line}"
        self.report.num_rows += 1
        try:
            if isinstance(raw, BadRow):
                raise raw
            conversation = parse_row(raw)
            encoded = self.encoder.surveyed(conversation, name)
        except BadRow as error:
            if self._policy.on_bad == "fail":
                raise DataError(f"{name}: {error}") from error
            self._record(BadRowRecord(source, line - 1, error.why, error.path))
            return None
        if encoded is None:
            return None
        tokens = {"input_ids": encoded.row.input_ids.tolist(), "labels": encoded.row.labels.tolist()}
        return {**tokens, "decode": partial(self.encoder.finished, conversation, encoded, name)}

    def _record(self, record: BadRowRecord) -> None:
        if len(self.report.bad_rows) < _MAX_RECORDS:
            self.report.bad_rows.append(record)
        else:
            self.report.num_bad_unlisted += 1


def _leave_encoded(source: Any) -> None:
    """Media columns of hub streams as bytes and paths: the caps come before decoding."""
    for i, part in enumerate(getattr(source, "parts", [])):
        if hasattr(part, "decode"):
            source.parts[i] = part.decode(False)

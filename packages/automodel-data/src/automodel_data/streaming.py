"""Datasets that are read as they are trained on: nothing is encoded before it is needed, nothing is kept.

Streams, `MixedStream` among them, have ``name``, ``num_source_rows`` (None where that is not known), ``start()`` and
``rows(position)``, which yields rows, each with the position behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from automodel_data.build import RowEncoder, RowPolicy
from automodel_data.chunks import encoded_chunks
from automodel_data.llm.chat import chat_encoder
from automodel_data.llm.column_mapped import column_encoder, qa_renderer
from automodel_data.row_stream import RowStream
from automodel_data.store import EncodeReport
from automodel_data.stream_sources import START, FileRows, Position, open_stream
from automodel_data.templates import ChatTemplate

_CHUNK = 256  # rows that a worker process encodes at a time


class StreamingTokenDataset(RowStream):
    """Rows of a source, encoded on the way; the same rows in the same order as the map-style dataset.

    Rows carry ``sample_id``, their number in the source. ``report`` accounts for the rows read so far.

    Args:
        source: a stream source (`stream_sources`), or random access to raw rows (`sources.open_source`).
        row_encoder: what makes tokens of a row.
        limit: use only the first rows.
    """

    def __init__(self, source: Any, row_encoder: RowEncoder, *, limit: int | None = None) -> None:
        source = source if hasattr(source, "read") else FileRows(source)
        super().__init__(source, policy=row_encoder.policy, limit=limit)
        self.row_encoder = row_encoder

    def rows(
        self, position: Position = START, *, num_workers: int = 0
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows from ``position`` on, each with the position behind it; ``num_workers`` processes encode ahead.

        Raises: DataError: a bad row under ``on_bad="fail"``, more of them than ``max_bad_fraction`` once a thousand
            rows were read, or a source that breaks off.
        """
        if position["row"] == 0:
            self.report = EncodeReport()
        reader = self.source.read(position)
        numbered = self._within_limit(reader)
        if num_workers:
            chunks = iter(lambda: list(islice(numbered, _CHUNK)), [])
            encoded = encoded_chunks(chunks, self.source, self.row_encoder, self.report, num_workers=num_workers)
        else:
            encoded = self.row_encoder.rows(numbered, self.source, self.report)
        for i, row in encoded:
            self._refuse_too_many_bad_rows()
            values = {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist(), "sample_id": i}
            yield values, reader.position(i + 1)
        self._refuse_too_many_bad_rows()
        self._log_report()


class ChatIterableDataset(StreamingTokenDataset):
    """`ChatDataset`, streamed; arguments as there. Hub ids are read as they arrive, without a download before."""

    def __init__(
        self,
        path_or_dataset_id: Any,
        tokenizer: Any,
        *,
        split: str = "train",
        name: str | None = None,
        seq_length: int | None = None,
        overflow: str = "drop",
        mask: str = "assistant",
        format: str = "auto",
        column_mapping: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
        limit_dataset_samples: int | None = None,
    ) -> None:
        template = ChatTemplate(tokenizer, chat_template=chat_template, template_kwargs=template_kwargs)
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction)
        encoder = chat_encoder(
            tokenizer, template, policy=policy, mask=mask, format=format, column_mapping=column_mapping
        )
        super().__init__(open_stream(path_or_dataset_id, split=split, name=name), encoder, limit=limit_dataset_samples)


class ColumnMappedTextInstructionIterableDataset(StreamingTokenDataset):
    """`ColumnMappedTextInstructionDataset`, streamed; arguments as there."""

    def __init__(
        self,
        path_or_dataset_id: Any,
        column_mapping: Mapping[str, str],
        tokenizer: Any,
        *,
        split: str | None = None,
        name: str | None = None,
        answer_only_loss_mask: bool = True,
        use_chat_template: bool | None = None,
        seq_length: int | None = None,
        overflow: str = "drop",
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
        limit_dataset_samples: int | None = None,
    ) -> None:
        render = qa_renderer(tokenizer, answer_only=answer_only_loss_mask, use_chat_template=use_chat_template)
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction)
        encoder = column_encoder(tokenizer, render, column_mapping, policy=policy)
        source = open_stream(path_or_dataset_id, split=split or "train", name=name)
        super().__init__(source, encoder, limit=limit_dataset_samples)

"""Datasets that are read as they are trained on: nothing is encoded before it is needed, nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from automodel_data.build import RowEncoder, RowPolicy
from automodel_data.llm.chat import chat_encoder
from automodel_data.llm.column_mapped import column_encoder, qa_renderer
from automodel_data.sources import open_source, rows_with_errors
from automodel_data.store import EncodeReport
from automodel_data.templates import ChatTemplate


class StreamingTokenDataset(IterableDataset):
    """Rows of a source, encoded on the way; the same rows in the same order as the map-style dataset.

    Rows carry ``sample_id``, their number in the source. ``report`` accounts for the rows read so far.

    Args:
        source: random access to raw rows (`sources.open_source`).
        row_encoder: what makes tokens of a row.
        limit: use only the first rows.
    """

    def __init__(self, source: Any, row_encoder: RowEncoder, *, limit: int | None = None) -> None:
        self.source, self.row_encoder = source, row_encoder
        self.num_source_rows = len(source) if limit is None else min(limit, len(source))
        self.report = EncodeReport()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows from source row ``start`` on. Raises: DataError: a bad row under ``on_bad="fail"``."""
        if start == 0:
            self.report = EncodeReport()
        numbered = rows_with_errors(self.source, start, self.num_source_rows)
        for i, row in self.row_encoder.rows(numbered, self.source, self.report):
            yield {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist(), "sample_id": i}


class ChatIterableDataset(StreamingTokenDataset):
    """`ChatDataset`, streamed; arguments as there."""

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
        limit_dataset_samples: int | None = None,
    ) -> None:
        template = ChatTemplate(tokenizer, chat_template=chat_template, template_kwargs=template_kwargs)
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad)
        encoder = chat_encoder(
            tokenizer, template, policy=policy, mask=mask, format=format, column_mapping=column_mapping
        )
        super().__init__(open_source(path_or_dataset_id, split=split, name=name), encoder, limit=limit_dataset_samples)


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
        limit_dataset_samples: int | None = None,
    ) -> None:
        render = qa_renderer(tokenizer, answer_only=answer_only_loss_mask, use_chat_template=use_chat_template)
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad)
        encoder = column_encoder(tokenizer, render, column_mapping, policy=policy)
        source = open_source(path_or_dataset_id, split=split or "train", name=name)
        super().__init__(source, encoder, limit=limit_dataset_samples)

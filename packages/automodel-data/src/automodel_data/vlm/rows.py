"""Encoded vision-language rows: lengths from headers once at the start, pixels in the workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from automodel_data.build import check_report
from automodel_data.errors import BadRow, DataError
from automodel_data.media import MediaLimits
from automodel_data.progress import counted
from automodel_data.store import BadRowRecord
from automodel_data.vlm.conversation import MediaConversation, parse_row
from automodel_data.vlm.encoder import MediaRowEncoder, load_media

logger = logging.getLogger(__name__)


class RowKeys(TypedDict, total=False):
    """Settings that every vision-language dataset takes beside its own."""

    seq_length: int | None
    overflow: str
    mask: str
    media: Mapping[str, Any] | MediaLimits | None
    media_root: str | Path | None
    max_media_per_row: int | None
    on_bad: str
    max_bad_fraction: float
    chat_template: str | None
    template_kwargs: Mapping[str, Any] | None


class VLMDataset:
    """Map-style rows ``{"input_ids", "labels", "features", "name", ...}`` for the vision-language collates.

    Every header is read and every text tokenised once when the dataset is built, so that rows that are too long or
    broken are known, reported and left out before training, and packing knows all lengths. Pixels are decoded in
    ``dataset[i]``, which runs in the loader's workers. Where they turn out broken after all, the row keeps its place
    with black media and no label, so neither the order nor the ranks are disturbed.

    Args:
        conversations: map-style raw rows; ``name_of(i)`` names a row in messages where it is there.
        processor: a Hugging Face processor, or `ProcessorParts`.
        keys: settings of `MediaRowEncoder`.

    Raises: DataError: a setting that is not known, too many bad rows, or nothing left.
    """

    def __init__(self, conversations: Any, processor: Any, **keys: Unpack[RowKeys]) -> None:
        self.conversations = conversations
        self.encoder = MediaRowEncoder(processor, **keys)
        self.adapter, self.report = self.encoder.adapter, self.encoder.report
        self._survey()

    def _survey(self) -> None:
        """Read headers and lengths of every row; fills ``report``, ``lengths`` and the rows that are kept."""
        kept, lengths = [], []
        for i in counted(range(len(self.conversations)), "read rows", len(self.conversations)):
            self.report.num_rows += 1
            try:
                encoded = self.encoder.surveyed(self._parsed(i), self.name_of(i))
            except BadRow as error:
                self._reject(error, i)
                continue
            if encoded is not None:
                kept.append(i)
                lengths.append(len(encoded.row.input_ids))
        self.source_rows, self.lengths = np.array(kept, dtype=np.int64), np.array(lengths, dtype=np.int64)
        if self.num_shrunk:
            logger.warning("%d rows have smaller images, to fit seq_length", self.num_shrunk)
        name = self.name_of(0).rpartition(":")[0] or "the dataset"
        check_report(self.report, policy=self.encoder.policy, name=name)

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """The kinds of media that the rows hold."""
        return self.encoder.media_kinds

    @property
    def num_shrunk(self) -> int:
        """Rows whose images were made smaller so that they fit."""
        return self.encoder.num_shrunk

    def _reject(self, error: BadRow, index: int) -> None:
        if self.encoder.policy.on_bad == "fail":
            raise DataError(f"{self.name_of(index)}: {error}") from error
        source, _, line = self.name_of(index).rpartition(":")
        self.report.bad_rows.append(BadRowRecord(source, int(line) - 1, error.why, error.path))

    def name_of(self, index: int) -> str:
        """``source:line`` of a row of the conversations."""
        named = getattr(self.conversations, "name_of", None)
        return named(index) if named is not None else f"row:{index + 1}"

    def describe_media(self, index: int) -> list[str]:
        """A line for each image or sound of row ``index``: its size as the model gets it, and the tokens it takes."""
        conversation = self._parsed(int(self.source_rows[index]))
        media, lines = conversation.media, []
        for item, size in zip(media, self.encoder.tokens(conversation).sizes):
            text = self.adapter.expansion(item.kind, size, num_in_row=len(media))
            tokens = len(self.adapter.tokenizer(text, add_special_tokens=False)["input_ids"])
            extent = f"{size[0] / size[1]:.2f} s" if item.kind == "audio" else f"{size[0]}x{size[1]}"
            lines.append(f"{item.kind} {extent}, {tokens} tokens")
        return lines

    def pictures(self, index: int) -> list[Any]:
        """The images of row ``index`` as PIL images, as the model gets them; none where they are broken."""
        conversation = self._parsed(int(self.source_rows[index]))
        try:
            return load_media(conversation, self.encoder.tokens(conversation).limits)[0]
        except BadRow:
            return []

    def _parsed(self, index: int) -> MediaConversation:
        return parse_row(self.conversations[index])

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = int(self.source_rows[index])
        conversation = self._parsed(source)
        return self.encoder.finished(conversation, self.encoder.tokens(conversation), self.name_of(source))

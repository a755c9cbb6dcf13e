"""Encoded vision-language rows: lengths from headers once at the start, pixels in the workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from automodel_data.build import RowPolicy, check_report
from automodel_data.collate.families import adapter_for
from automodel_data.encode import IGNORE_INDEX, TokenRow
from automodel_data.errors import BadRow, DataError
from automodel_data.media import MediaLimits, load_audio, load_image, probe_audio, probe_image
from automodel_data.progress import counted
from automodel_data.store import BadRowRecord, EncodeReport
from automodel_data.templates import MASKS
from automodel_data.vlm.conversation import Media, MediaConversation, parse_row

logger = logging.getLogger(__name__)
_SHRINK, _SMALLEST_IMAGE = 0.7, 32 * 32  # pixels kept in one step, and where shrinking ends


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


@dataclass(frozen=True)
class _Encoded:
    """A row's tokens, the sizes of its media, and the limits under which they are of these sizes."""

    row: TokenRow
    sizes: list[tuple[int, int]]
    limits: MediaLimits


class VLMDataset:
    """Map-style rows ``{"input_ids", "labels", "features", "name", ...}`` for the vision-language collates.

    Every header is read and every text tokenised once when the dataset is built, so that rows that are too long or
    broken are known, reported and left out before training, and packing knows all lengths. Pixels are decoded in
    ``dataset[i]``, which runs in the loader's workers. Where they turn out broken after all, the row keeps its place
    with black media and no label, so neither the order nor the ranks are disturbed.

    Args:
        conversations: map-style raw rows; ``name_of(i)`` names a row in messages where it is there.
        processor: a Hugging Face processor, or `ProcessorParts`.
        seq_length: most tokens per row, media included; None for no limit.
        overflow: for longer rows, ``drop``, ``truncate_right`` (never inside or before the end of media),
            ``shrink_images`` (until the row fits, else drop) or ``error``.
        mask: one of `templates.MASKS`.
        media: `MediaLimits` or its fields.
        media_root: the directory that local media lie in, where ``media`` names no roots.
        max_media_per_row: rows with more images or sounds are bad rows; None for no limit.
        on_bad, max_bad_fraction: ``skip`` leaves bad rows out and reports them, ``fail`` stops at the first.
        chat_template, template_kwargs: in place of the processor's template; variables for it.

    Raises: DataError: a setting that is not known, too many bad rows, or nothing left.
    """

    def __init__(
        self,
        conversations: Any,
        processor: Any,
        *,
        seq_length: int | None = None,
        overflow: str = "drop",
        mask: str = "assistant",
        media: Mapping[str, Any] | MediaLimits | None = None,
        media_root: str | Path | None = None,
        max_media_per_row: int | None = None,
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, allowed in (
            ("mask", mask, MASKS),
            ("overflow", overflow, ("drop", "truncate_right", "shrink_images", "error")),
        ):
            if value not in allowed:
                raise DataError(f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, allowed))}.")
        self.conversations, self.mask, self._most_media = conversations, mask, max_media_per_row
        self.adapter = adapter_for(processor, chat_template=chat_template, template_kwargs=template_kwargs)
        self.limits = MediaLimits.of(media, root=media_root)
        self._overflow = overflow
        self._policy = RowPolicy(
            seq_length=seq_length,
            overflow="drop" if overflow == "shrink_images" else overflow,  # what still does not fit is dropped
            on_bad=on_bad,
            max_bad_fraction=max_bad_fraction,
        )
        self.report = EncodeReport()
        self._broken: set[int] = set()
        self.num_shrunk = 0
        """Rows whose images were made smaller so that they fit."""
        self._survey()

    def _survey(self) -> None:
        """Read headers and lengths of every row; fills ``report``, ``lengths`` and the rows that are kept."""
        kept, lengths, kinds = [], [], set()
        for i in counted(range(len(self.conversations)), "read rows", len(self.conversations)):
            self.report.num_rows += 1
            try:
                conversation = self._parsed(i)
                encoded = self._tokens(conversation)
                row = self._fitted(encoded.row)
            except BadRow as error:
                self._reject(error, i)
                continue
            if row is None:
                self.report.num_too_long += 1
                continue
            kept.append(i)
            lengths.append(len(row.input_ids))
            self.num_shrunk += encoded.limits is not self.limits
            kinds |= {media.kind for media in conversation.media}
            self.report.num_label_tokens += int((row.labels[1:] != IGNORE_INDEX).sum())
        self.media_kinds = tuple(sorted(kinds))
        self.source_rows, self.lengths = np.array(kept, dtype=np.int64), np.array(lengths, dtype=np.int64)
        if self.num_shrunk:
            logger.warning("%d rows have smaller images, to fit seq_length", self.num_shrunk)
        self.report.num_kept, self.report.num_tokens = len(kept), int(self.lengths.sum())
        check_report(self.report, policy=self._policy, name=self.name_of(0).rpartition(":")[0] or "the dataset")

    def _reject(self, error: BadRow, index: int) -> None:
        if self._policy.on_bad == "fail":
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
        for item, size in zip(media, self._tokens(conversation).sizes):
            text = self.adapter.expansion(item.kind, size, num_in_row=len(media))
            tokens = len(self.adapter.tokenizer(text, add_special_tokens=False)["input_ids"])
            extent = f"{size[0] / size[1]:.2f} s" if item.kind == "audio" else f"{size[0]}x{size[1]}"
            lines.append(f"{item.kind} {extent}, {tokens} tokens")
        return lines

    def pictures(self, index: int) -> list[Any]:
        """The images of row ``index`` as PIL images, as the model gets them; none where they are broken."""
        conversation = self._parsed(int(self.source_rows[index]))
        try:
            return _load(conversation, self._tokens(conversation).limits)[0]
        except BadRow:
            return []

    def _parsed(self, index: int) -> MediaConversation:
        return parse_row(self.conversations[index])

    def _tokens(self, conversation: MediaConversation) -> _Encoded:
        """Ids and labels, with smaller images where policy and length ask for it."""
        encoded = self._encoded(conversation, self.limits)
        limit = self._policy.seq_length
        if limit is None or self._overflow != "shrink_images":
            return encoded
        while len(encoded.row.input_ids) > limit:
            images = [w * h for media, (w, h) in zip(conversation.media, encoded.sizes) if media.kind == "image"]
            if max(images, default=0) <= _SMALLEST_IMAGE:
                break
            smaller = replace(self.limits, pixel_budget=int(_SHRINK * max(images)))
            encoded = self._encoded(conversation, smaller)
        return encoded

    def _encoded(self, conversation: MediaConversation, limits: MediaLimits) -> _Encoded:
        if self._most_media is not None and len(conversation.media) > self._most_media:
            raise BadRow(f"{len(conversation.media)} media in a row", hint=f"max_media_per_row={self._most_media}.")
        sizes = [_size(media, limits) for media in conversation.media]
        row = self.adapter.encode(conversation, sizes, mask=self.mask)
        return _Encoded(TokenRow(row.input_ids, row.labels.copy()), sizes, limits)

    def _fitted(self, row: TokenRow) -> TokenRow | None:
        """The row within ``seq_length``, cut only behind its last media token; None when policy drops it."""
        limit = self._policy.seq_length
        if limit is None or len(row.input_ids) <= limit:
            return self._supervised(row)
        if self._overflow == "error":
            raise DataError(f"a row has {len(row.input_ids)} tokens, seq_length is {limit}. Raise it, or set overflow.")
        media = np.isin(row.input_ids, [self.adapter.media_token_id(kind) for kind in self.adapter.kinds])
        if self._overflow in ("drop", "shrink_images"):
            return None
        if media[limit:].any():
            raise BadRow("media alone exceed seq_length", hint="Set media.pixel_budget, or raise seq_length.")
        self.report.num_truncated += 1
        self.report.num_tokens_cut += len(row.input_ids) - limit
        return self._supervised(TokenRow(row.input_ids[:limit], row.labels[:limit]))

    def _supervised(self, row: TokenRow) -> TokenRow:
        if not (row.labels[1:] != IGNORE_INDEX).any():
            raise BadRow("no supervised token")
        return row

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = int(self.source_rows[index])
        conversation = self._parsed(source)
        encoded = self._tokens(conversation)
        row = self._cut(encoded.row)
        labels = row.labels.tolist()
        try:
            images, sounds = _load(conversation, encoded.limits)
        except BadRow as error:
            images, sounds = self._blank_media(conversation, encoded.sizes, source, error)
            labels = [IGNORE_INDEX] * len(labels)
        ids, features = row.input_ids.tolist(), self.adapter.features(images, sounds)
        self.adapter.check_counts(ids, features, name=self.name_of(source))
        columns = self.adapter.token_columns(ids, row.labels.tolist())
        named = {"name": self.name_of(source), "media_kinds": self.media_kinds}
        return {"input_ids": ids, "labels": labels, **columns, "features": features, **named}

    def _cut(self, row: TokenRow) -> TokenRow:
        limit = self._policy.seq_length
        return row if limit is None else TokenRow(row.input_ids[:limit], row.labels[:limit])

    def _blank_media(
        self, conversation: MediaConversation, sizes: list[tuple[int, int]], source: int, error: BadRow
    ) -> tuple[list[Any], list[Any]]:
        """Black images and silence of the sizes that the headers told.

        Raises: DataError: ``on_bad`` is ``fail``, or this process has met more than ``max_bad_fraction`` of all rows.
        """
        from PIL import Image

        from automodel_data.media import Sound

        self._broken.add(source)
        if self._policy.on_bad == "fail" or len(self._broken) > max(1, self._policy.max_bad_fraction * len(self)):
            raise DataError(f"{self.name_of(source)}: {error} {len(self._broken)} rows have broken media.") from error
        logger.warning("%s: %s; the row trains nothing", self.name_of(source), error)
        kinds = [m.kind for m in conversation.media]
        images = [Image.new("RGB", size) for kind, size in zip(kinds, sizes) if kind == "image"]
        sounds = [Sound(np.zeros(n, np.float32), rate) for kind, (n, rate) in zip(kinds, sizes) if kind == "audio"]
        return images, sounds


def _size(media: Media, limits: MediaLimits) -> tuple[int, int]:
    if media.kind == "audio":
        return probe_audio(media.ref, limits)
    info = probe_image(media.ref, limits)
    return info.width, info.height


def _load(conversation: MediaConversation, limits: MediaLimits) -> tuple[list[Any], list[Any]]:
    images = [load_image(m.ref, limits) for m in conversation.media if m.kind == "image"]
    return images, [load_audio(m.ref, limits) for m in conversation.media if m.kind == "audio"]

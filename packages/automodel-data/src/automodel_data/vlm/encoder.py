"""One vision-language row: tokens from the sizes of its media, and tensors from their pixels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automodel_data.build import RowPolicy
from automodel_data.collate.families import adapter_for
from automodel_data.encode import IGNORE_INDEX, TokenRow
from automodel_data.errors import BadRow, DataError
from automodel_data.media import MediaLimits, load_audio, load_image, probe_audio, probe_image
from automodel_data.store import EncodeReport
from automodel_data.templates import MASKS
from automodel_data.vlm.conversation import Media, MediaConversation

logger = logging.getLogger(__name__)
_SHRINK, _SMALLEST_IMAGE = 0.7, 32 * 32  # pixels kept in one step, and where shrinking ends


@dataclass(frozen=True)
class Encoded:
    """A row's tokens, the sizes of its media, and the limits under which they are of these sizes."""

    row: TokenRow
    sizes: list[tuple[int, int]]
    limits: MediaLimits


class MediaRowEncoder:
    """How a raw row becomes tokens and tensors: everything about a vision-language dataset but where its rows are.

    Args:
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

    Raises: DataError: a setting that is not known.
    """

    def __init__(
        self,
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
        self.mask, self._most_media, self._overflow = mask, max_media_per_row, overflow
        self.adapter = adapter_for(processor, chat_template=chat_template, template_kwargs=template_kwargs)
        self.limits = MediaLimits.of(media, root=media_root)
        self.policy = RowPolicy(
            seq_length=seq_length,
            overflow="drop" if overflow == "shrink_images" else overflow,  # what still does not fit is dropped
            on_bad=on_bad,
            max_bad_fraction=max_bad_fraction,
        )
        self.report = EncodeReport()
        self.num_shrunk = 0
        """Rows whose images were made smaller so that they fit."""
        self.media_kinds: tuple[str, ...] = ()
        """The kinds of media that the rows hold, as far as they are known."""
        self._broken: set[str] = set()

    def surveyed(self, conversation: MediaConversation, name: str) -> Encoded | None:
        """The row's tokens as policy leaves them, counted in ``report``; None for a row that is left out as too long.

        Raises: BadRow: it cannot be trained on. DataError: it is too long, and ``overflow`` is ``error``.
        """
        encoded = self.tokens(conversation)
        row = self._fitted(encoded.row, name)
        if row is None:
            self.report.num_too_long += 1
            return None
        self.num_shrunk += encoded.limits is not self.limits
        self.media_kinds = tuple(sorted({*self.media_kinds, *(media.kind for media in conversation.media)}))
        self.report.num_kept += 1
        self.report.num_tokens += len(row.input_ids)
        self.report.num_label_tokens += int((row.labels[1:] != IGNORE_INDEX).sum())
        return replace(encoded, row=row)

    def tokens(self, conversation: MediaConversation) -> Encoded:
        """Ids and labels, with smaller images where policy and length ask for it."""
        encoded = self._encoded(conversation, self.limits)
        limit = self.policy.seq_length
        if limit is None or self._overflow != "shrink_images":
            return encoded
        while len(encoded.row.input_ids) > limit:
            images = [w * h for media, (w, h) in zip(conversation.media, encoded.sizes) if media.kind == "image"]
            if max(images, default=0) <= _SMALLEST_IMAGE:
                break
            smaller = replace(self.limits, pixel_budget=int(_SHRINK * max(images)))
            encoded = self._encoded(conversation, smaller)
        return encoded

    def _encoded(self, conversation: MediaConversation, limits: MediaLimits) -> Encoded:
        if self._most_media is not None and len(conversation.media) > self._most_media:
            raise BadRow(f"{len(conversation.media)} media in a row", hint=f"max_media_per_row={self._most_media}.")
        sizes = [_size(media, limits) for media in conversation.media]
        row = self.adapter.encode(conversation, sizes, mask=self.mask)
        return Encoded(TokenRow(row.input_ids, row.labels.copy()), sizes, limits)

    def _fitted(self, row: TokenRow, name: str) -> TokenRow | None:
        """The row within ``seq_length``, cut only behind its last media token; None when policy drops it."""
        limit = self.policy.seq_length
        if limit is None or len(row.input_ids) <= limit:
            return self._supervised(row)
        if self._overflow == "error":
            raise DataError(
                f"{name}: the row has {len(row.input_ids)} tokens, seq_length is {limit}. Raise it, or set overflow."
            )
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

    def finished(self, conversation: MediaConversation, encoded: Encoded, name: str) -> dict[str, Any]:
        """The row for the collates, media decoded; with black media and no label where they prove broken.

        Raises: DataError: ``on_bad`` is ``fail``, or this process has met too many rows with broken media.
        """
        limit = self.policy.seq_length
        ids, trained = encoded.row.input_ids[:limit].tolist(), encoded.row.labels[:limit].tolist()
        labels = trained
        try:
            images, sounds = load_media(conversation, encoded.limits)
        except BadRow as error:
            images, sounds = self._blank_media(conversation, encoded.sizes, name, error)
            labels = [IGNORE_INDEX] * len(labels)
        features = self.adapter.features(images, sounds)
        self.adapter.check_counts(ids, features, name=name)
        columns = self.adapter.token_columns(ids, trained)
        named = {"name": name, "media_kinds": self.media_kinds}
        return {"input_ids": ids, "labels": labels, **columns, "features": features, **named}

    def _blank_media(
        self, conversation: MediaConversation, sizes: list[tuple[int, int]], name: str, error: BadRow
    ) -> tuple[list[Any], list[Any]]:
        """Black images and silence of the sizes that the headers told."""
        from PIL import Image

        from automodel_data.media import Sound

        self._broken.add(name)
        allowed = max(1, self.policy.max_bad_fraction * self.report.num_kept)
        if self.policy.on_bad == "fail" or len(self._broken) > allowed:
            raise DataError(f"{name}: {error} {len(self._broken)} rows have broken media.") from error
        logger.warning("%s: %s; the row trains nothing", name, error)
        kinds = [m.kind for m in conversation.media]
        images = [Image.new("RGB", size) for kind, size in zip(kinds, sizes) if kind == "image"]
        sounds = [Sound(np.zeros(n, np.float32), rate) for kind, (n, rate) in zip(kinds, sizes) if kind == "audio"]
        return images, sounds


def _size(media: Media, limits: MediaLimits) -> tuple[int, int]:
    if media.kind == "audio":
        return probe_audio(media.ref, limits)
    info = probe_image(media.ref, limits)
    return info.width, info.height


def load_media(conversation: MediaConversation, limits: MediaLimits) -> tuple[list[Any], list[Any]]:
    images = [load_image(m.ref, limits) for m in conversation.media if m.kind == "image"]
    return images, [load_audio(m.ref, limits) for m in conversation.media if m.kind == "audio"]

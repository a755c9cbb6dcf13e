"""What every family shares: placeholders in, token ids, labels and pixel tensors out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from automodel_data.encode import TextEncoder, TokenRow
from automodel_data.errors import BadRow, DataError
from automodel_data.templates import Rendered
from automodel_data.vlm.conversation import MediaConversation
from automodel_data.vlm.template import MediaChatTemplate

Features = dict[str, torch.Tensor]


class FamilyAdapter:
    """Knows how one family writes media into text and tensors.

    Text, masks and token ids come from the text path; the adapter replaces each placeholder that the chat template
    printed by the family's expansion and makes the tensors. Expansions follow from media *sizes*, tensors from pixels,
    so comparing their counts is a real check.

    Args:
        processor: a Hugging Face processor of this family, or `parts.ProcessorParts`.
        chat_template, template_kwargs: in place of the processor's template; variables for it.
    """

    kinds: tuple[str, ...] = ("image",)
    can_pack = True
    """Whether the models keep packed documents apart; False where their own image mask gets in the way."""

    def __init__(self, processor: Any, *, chat_template: str | None = None, template_kwargs: Any = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.encoder = TextEncoder(self.tokenizer)
        self.template = self._build_template(
            chat_template or getattr(processor, "chat_template", None), template_kwargs
        )
        self._blanks: dict[str, tuple[list[int], Features]] = {}

    def _build_template(self, chat_template: str | None, template_kwargs: Any) -> Any:
        return MediaChatTemplate(self.tokenizer, chat_template=chat_template, template_kwargs=template_kwargs)

    # What a family defines.

    def placeholder(self, kind: str) -> str:
        """The text that the chat template prints for one media item."""
        return self.processor.image_token

    def media_token_id(self, kind: str) -> int:
        """The id whose embeddings the model replaces by features."""
        return int(self.processor.image_token_id)

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        """The text that stands for one item: ``size`` is (width, height) of an image, (samples, rate) of a sound."""
        raise DataError(f"{type(self).__name__} does not take {kind}. Use another model, or rows without it.")

    def features(self, images: Sequence[Any], sounds: Sequence[Any]) -> Features:
        """Tensors of one row's media, the first dimension counting items, tiles or patches."""
        return self._image_features(images)

    def num_features(self, features: Features) -> dict[str, int]:
        """How many embeddings the model will make of ``features``, by kind."""
        raise DataError(f"{type(self).__name__} counts no features. Use an adapter of a known family.")

    def token_columns(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, list[int]]:
        """Further columns as long as ``input_ids`` that the model wants."""
        return {}

    def stack(self, rows: Sequence[Features]) -> Features:
        """One batch of several rows' tensors; rows without media are not among them."""
        return {key: cat_padded([row[key] for row in rows]) for key in rows[0]}

    def packed_positions(self, ids: torch.Tensor, positions: torch.Tensor, features: Features) -> torch.Tensor:
        """Position ids of packed rows ``[B, T]``; families with several position axes return ``[1 + axes, B, T]``."""
        return positions

    # What follows from it.

    def render(self, conversation: MediaConversation, *, mask: str) -> Rendered:
        """The conversation as text with one placeholder per media item, and the trained characters."""
        return self.template.render(conversation.text, mask=mask)

    def encode(
        self, conversation: MediaConversation, sizes: Sequence[tuple[int, int]], *, mask: str = "assistant"
    ) -> TokenRow:
        """Ids and labels of a row, from its text and the sizes of its media.

        Raises: BadRow: placeholders and media disagree, or the text holds the family's media token.
        """
        rendered = self.expand(self.render(conversation, mask=mask), conversation, sizes)
        return self._checked(self.encoder.encode([rendered])[0], conversation, sizes)

    def encode_prompt(self, conversation: MediaConversation, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Ids up to where the model's answer begins. Raises: BadRow: as `encode`."""
        rendered = self.expand(self._render_prompt(conversation), conversation, sizes)
        return self.encoder.encode([rendered])[0].input_ids.tolist()

    def _render_prompt(self, conversation: MediaConversation) -> Rendered:
        return self.template.render_prompt(conversation.text)

    def expand(self, rendered: Rendered, conversation: MediaConversation, sizes: Sequence[tuple[int, int]]) -> Rendered:
        """The rendered text with each placeholder replaced by its expansion, spans moved along."""
        found = self._find_placeholders(rendered.text, conversation)
        count = len(conversation.media)
        edits = [
            (at, len(self.placeholder(m.kind)), self.expansion(m.kind, size, num_in_row=count))
            for at, m, size in zip(found, conversation.media, sizes, strict=True)
        ]
        return _edited(rendered, sorted(edits))

    def _find_placeholders(self, text: str, conversation: MediaConversation) -> list[int]:
        """Where each media item's placeholder stands, in the order of the media."""
        found: dict[str, list[int]] = {}
        for kind in self.kinds:
            token = self.placeholder(kind)
            found[kind] = [i for i in range(len(text)) if text.startswith(token, i)] if token in text else []
            wanted = sum(m.kind == kind for m in conversation.media)
            if len(found[kind]) != wanted:
                raise BadRow(
                    f"{kind} placeholders unlike the number of {kind} files",
                    hint=f"{len(found[kind])} times {token!r} in the rendered text, {wanted} files.",
                )
        if strange := {m.kind for m in conversation.media} - set(self.kinds):
            raise BadRow(f"{type(self).__name__} takes no {min(strange)}")
        return [found[m.kind].pop(0) for m in conversation.media]

    def _checked(self, row: TokenRow, conversation: MediaConversation, sizes: Sequence[tuple[int, int]]) -> TokenRow:
        """Media tokens are never trained; a row without media must not hold any."""
        for kind in self.kinds:
            is_media = row.input_ids == self.media_token_id(kind)
            if is_media.any() and not any(m.kind == kind for m in conversation.media):
                raise BadRow(f"text holds the {kind} token without {kind} files")
            row.labels[is_media] = -100
        return row

    def check_counts(self, ids: Sequence[int], features: Features, *, name: str) -> None:
        """Placeholders must equal features. Raises: DataError: naming the sample and both numbers."""
        made = self.num_features(features) if features else {}
        for kind in self.kinds:
            token = self.media_token_id(kind)
            placeholders = sum(i == token for i in ids)
            if placeholders != made.get(kind, 0):
                raise DataError(
                    f"sample {name}: {placeholders} {kind} tokens for {made.get(kind, 0)} {kind} features. The "
                    "processor and its settings do not belong to each other; check patch size and sequence length."
                )

    def blank_kinds(self, data: Collection[str], present: Collection[str]) -> tuple[str, ...]:
        """The kinds to add as blanks to a batch that holds ``present``, of data that hold ``data``."""
        return tuple(kind for kind in self.kinds if kind in data and kind not in present)

    def blank(self, kind: str) -> tuple[list[int], Features]:
        """Ids and tensors of a small black image, or of silence, for batches that hold none."""
        if kind not in self._blanks:
            self._blanks[kind] = self.blank_sound() if kind == "audio" else self._blank_image()
        return self._blanks[kind]

    def blank_sound(self) -> tuple[list[int], Features]:
        """For families that take sounds."""
        raise DataError(f"{type(self).__name__} takes no sounds. Use another model, or rows without them.")

    def _blank_image(self) -> tuple[list[int], Features]:
        from PIL import Image

        image = Image.new("RGB", (56, 56))
        text = self.expansion("image", image.size, num_in_row=1)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids), self.features([image], [])

    def _image_features(self, images: Sequence[Any]) -> Features:
        if not images:
            return {}
        output = self.processor.image_processor(list(images), return_tensors="pt", **self.image_options())
        return {key: torch.as_tensor(output[key]) for key in self.image_keys() if key in output}

    def image_options(self) -> dict[str, Any]:
        """Arguments for the image processor."""
        return dict(getattr(self.processor, "images_kwargs", None) or {})

    def image_keys(self) -> tuple[str, ...]:
        """What the model takes of the image processor's output."""
        return ("pixel_values",)


def _edited(rendered: Rendered, edits: Sequence[tuple[int, int, str]]) -> Rendered:
    """``rendered`` with (position, length, replacement) edits applied; spans keep their text."""
    pieces, at = [], 0
    for start, length, replacement in edits:
        pieces += [rendered.text[at:start], replacement]
        at = start + length
    pieces.append(rendered.text[at:])

    def moved(position: int) -> int:
        return position + sum(len(new) - length for start, length, new in edits if start + length <= position)

    return Rendered("".join(pieces), [(moved(a), moved(b)) for a, b in rendered.spans])


def cat_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate along dim 0; other dims are padded with zeros at their end to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors))]
    padded = []
    for tensor in tensors:
        missing = [pad for size, want in zip(reversed(tensor.shape[1:]), reversed(shape)) for pad in (0, want - size)]
        padded.append(torch.nn.functional.pad(tensor, missing) if any(missing) else tensor)
    return torch.cat(padded)


def is_token(ids: Sequence[int], token: int) -> list[int]:
    """1 where ``ids`` holds ``token``, else 0."""
    return [int(i == token) for i in ids]


def first_of(mapping: Mapping[str, Any], *names: str) -> int:
    """The first of several names that a size record has."""
    for name in names:
        value = mapping.get(name) if isinstance(mapping, Mapping) else getattr(mapping, name, None)
        if value is not None:
            return int(value)
    raise DataError(f"the image processor's size {mapping!r} has none of {names}. Check its configuration.")

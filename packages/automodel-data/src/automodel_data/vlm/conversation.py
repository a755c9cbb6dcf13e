"""Raw multimodal rows, normalised to messages of text with a slot for each image or sound.

A slot is one private-use character inside the message text, so that rendering and masking work on plain strings, as
for text; `template.MediaChatTemplate` turns slots into content parts again where the chat template wants them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from automodel_data.errors import BadRow
from automodel_data.rows import Conversation, sniff_format, to_conversation

SLOTS = {"image": "\ue010", "audio": "\ue011"}
_TAG = re.compile(r"<(image|audio)>")
_COLUMNS = {"image": ("image", "images"), "audio": ("audio", "audios")}


@dataclass(frozen=True)
class Media:
    """One image or sound of a row, not decoded."""

    kind: str
    ref: Any


@dataclass(frozen=True)
class MediaConversation:
    """Messages with slots, and what goes into the slots, in order."""

    text: Conversation
    media: tuple[Media, ...]


def parse_row(row: Mapping[str, Any]) -> MediaConversation:
    """Normalise a row: OpenAI content parts under ``messages`` or ``conversation``, or LLaVA's ``<image>`` tags with
    ``image``/``images`` columns; a row without media is what the text formats make of it.

    Raises: BadRow: an unknown part, or tags that do not match the media.
    """
    if "conversation" in row and "messages" not in row:
        row = {**row, "messages": row["conversation"]}
    messages = row.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str) and _has_parts(messages):
        flat, media = _from_parts(messages)
        return MediaConversation(to_conversation({**row, "messages": flat}, "messages"), tuple(media))
    conversation = to_conversation(row, sniff_format(row))
    _refuse_slots(str(m.get("content")) for m in conversation.messages)
    media = _columns(row)
    return _with_tags(conversation, media) if media else MediaConversation(conversation, ())


def _has_parts(messages: Sequence[Any]) -> bool:
    return any(isinstance(m, Mapping) and isinstance(m.get("content"), Sequence) and not isinstance(m["content"], str)
               for m in messages)  # fmt: skip


def _from_parts(messages: Sequence[Any]) -> tuple[list[Any], list[Media]]:
    flat: list[Any] = []
    media: list[Media] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            _refuse_slots([content])
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [_part(part, media, f"/messages/{i}/content/{j}") for j, part in enumerate(content)]
            message = {**message, "content": "".join(texts)}
        flat.append(message)
    return flat, media


def _part(part: Any, media: list[Media], path: str) -> str:
    """The text of one content part; media are appended to ``media`` and leave a slot."""
    if not isinstance(part, Mapping):
        raise BadRow(f"a content part is {type(part).__name__}, not an object", path=path)
    # Arrow gives every part the union of all keys, with null where a key is absent.
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type", "text")
    if kind == "text":
        if not isinstance(given.get("text"), str):
            raise BadRow("a text part without text", path=path)
        _refuse_slots([given["text"]])
        return given["text"]
    name = {"image_url": "image", "input_audio": "audio"}.get(kind, kind)
    if name not in SLOTS:
        raise BadRow(f"content parts of type {kind!r} are not known", path=path, hint="Known: text, image, audio.")
    ref = next((given[key] for key in (kind, name, "url", "path", "bytes") if key in given), None)
    if isinstance(ref, Mapping) and set(ref) & {"url", "data"}:
        ref = ref.get("url", ref.get("data"))
    if ref is None:
        raise BadRow(f"{name} part without {name}", path=path)
    media.append(Media(name, ref))
    return SLOTS[name]


def _columns(row: Mapping[str, Any]) -> list[Media]:
    media = []
    for kind, names in _COLUMNS.items():
        for value in (row[name] for name in names if row.get(name) is not None):
            media += [Media(kind, ref) for ref in (value if isinstance(value, (list, tuple)) else [value])]
    return media


def _with_tags(conversation: Conversation, media: Sequence[Media]) -> MediaConversation:
    """Slots in place of tags; a row of images without any tag gets them before the first user message."""
    pools = {kind: [m for m in media if m.kind == kind] for kind in SLOTS}
    ordered: list[Media] = []
    messages = [dict(message) for message in conversation.messages]
    if not any(_TAG.search(m["content"]) for m in messages if m["role"] == "user"):
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is None:
            raise BadRow("media without a user message to put them in")
        first["content"] = "".join(SLOTS[m.kind] for m in media) + first["content"]
        return MediaConversation(replace(conversation, messages=messages), tuple(media))

    def take(match: re.Match[str]) -> str:
        kind = match.group(1)
        if pools[kind]:
            ordered.append(pools[kind].pop(0))
        else:
            raise BadRow(f"more <{kind}> tags than {kind} files", hint="One tag for each file.")
        return SLOTS[kind]

    for message in messages:
        if message["role"] == "user":
            message["content"] = _TAG.sub(take, message["content"])
    if left := [kind for kind, pool in pools.items() if pool]:
        raise BadRow(f"more {left[0]} files than <{left[0]}> tags", hint="One tag for each file.")
    return MediaConversation(replace(conversation, messages=messages), tuple(ordered))


def _refuse_slots(texts: Any) -> None:
    for text in texts:
        if any(slot in text for slot in SLOTS.values()):
            raise BadRow("text holds a private-use character that stands for media", hint="Remove U+E010 and U+E011.")

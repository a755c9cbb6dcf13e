"""Markers inside assistant turns: where a template puts each turn, read off a second rendering.

Markers are inserted into the text that a template prints (content, or the first tool call's name), so that removing
them from the rendering must give the plain rendering back; the caller checks that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MARKER = "\ue000{:d}\ue001"  # private-use characters: no vocabulary or template treats them specially
_PATTERN = re.compile("\ue000(\\d+)\ue001")


def without_markers(marked: str) -> str:
    """The text with every marker removed."""
    return _PATTERN.sub("", marked)


def marked_copies(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Copies of the messages with a marker in each assistant turn, the likeliest place first."""
    for place in (_mark_content, _mark_tool_call):
        counter = iter(range(len(messages)))
        yield [place(m, _MARKER.format(next(counter))) if m["role"] == "assistant" else m for m in messages]


def _mark_content(message: Mapping[str, Any], marker: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        at = next((i for i, part in enumerate(content) if part.get("type") == "text"), None)
        if at is None:
            return dict(message)
        part = {**content[at], "text": _inserted(content[at]["text"], marker)}
        return {**message, "content": [*content[:at], part, *content[at + 1 :]]}
    if not content.strip() and message.get("tool_calls"):
        return _mark_tool_call(message, marker)
    return {**message, "content": _inserted(content, marker)}


def _inserted(text: str, marker: str) -> str:
    # Past whitespace, which templates trim, and past an inline thinking block, which they cut out of earlier turns.
    at = text.rfind("</think>")
    at = 0 if at < 0 else at + len("</think>")
    at += len(text[at:]) - len(text[at:].lstrip())
    return text[:at] + marker + text[at:]


def _mark_tool_call(message: Mapping[str, Any], marker: str) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return _mark_content(message, marker)
    first, *others = message["tool_calls"]
    function = {**first["function"], "name": marker + first["function"]["name"]}
    return {**message, "tool_calls": [{**first, "function": function}, *others]}


def anchors_in(marked: str) -> dict[int, int]:
    """First position of each marker by its number, in coordinates of the text without markers."""
    positions: dict[int, int] = {}
    removed = 0
    for match in _PATTERN.finditer(marked):
        positions.setdefault(int(match.group(1)), match.start() - removed)
        removed += len(match.group())
    return positions


def around_marker(content: Any) -> tuple[str, str]:
    """Content before and after its marker, trailing whitespace left out; empty where the marker is elsewhere."""
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    for text in texts:
        if match := _PATTERN.search(text):
            return text[: match.start()], text[match.end() :].rstrip()
    return "", ""

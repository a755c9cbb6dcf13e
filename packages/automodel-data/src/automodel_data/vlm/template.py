"""The text path's chat template, with slots handed to Jinja as content parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from automodel_data.errors import BadRow
from automodel_data.rows import Conversation
from automodel_data.templates import ChatTemplate, Rendered
from automodel_data.vlm.conversation import SLOTS

_SPLIT = re.compile("([" + "".join(SLOTS.values()) + "])")
_KINDS = {slot: kind for kind, slot in SLOTS.items()}


class MediaChatTemplate(ChatTemplate):
    """A `ChatTemplate` for messages with slots; trained spans are found exactly as for text.

    Messages without a slot stay strings where the template prints strings, so that a text-only row renders as it does
    for a text model; templates that know only content parts get parts throughout.
    """

    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, template_kwargs: Any = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template, template_kwargs=template_kwargs)
        self._parts_only = False
        probe = "probe"
        try:
            self._parts_only = probe not in self._text([{"role": "user", "content": probe}], None)
        except BadRow:
            self._parts_only = True

    def render_prompt(self, conversation: Conversation) -> Rendered:
        """The conversation up to the generation prompt, nothing trained."""
        return Rendered(self._text(conversation.messages, conversation.tools, add_generation_prompt=True))

    def _render(self, source: str, messages: Sequence[Mapping[str, Any]], tools: Any, **flags: Any) -> Any:
        return super()._render(source, [self._as_parts(m) for m in messages], tools, **flags)

    def _as_parts(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content")
        if not isinstance(content, str) or not (self._parts_only or _SPLIT.search(content)):
            return message
        pieces = [piece for piece in _SPLIT.split(content) if piece]
        parts = [{"type": _KINDS[p]} if p in _KINDS else {"type": "text", "text": p} for p in pieces]
        return {**message, "content": parts or [{"type": "text", "text": ""}]}

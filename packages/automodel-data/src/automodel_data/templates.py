"""Render a conversation through a chat template, and find the characters that an assistant would have written.

A trained span begins where generation would begin, right after the template's generation prompt, and ends with the stop
token that closes the turn. It comes from the template's own ``{% generation %}`` marks where it has them. Elsewhere
each turn must follow one generation prompt word for word; where that is not so plain (reasoning, tool calls, quoted
prompts), the conversation is rendered a second time with a marker inside each assistant turn, and the markers'
positions count only if removing them gives the plain rendering back, character by character. A template where nothing
works is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from automodel_data.errors import BadRow, DataError
from automodel_data.markers import anchors_in, around_marker, marked_copies, without_markers
from automodel_data.rows import Conversation

Span = tuple[int, int]
MASKS = ("assistant", "last_turn", "all")

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Tokens that end a turn in public templates, beside the tokenizer's EOS and what the template itself shows.
_KNOWN_STOPS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
    "<|call|>",
    "<|eot|>",
    "<|observation|>",
    "<turn|>",
)


@dataclass(frozen=True)
class Rendered:
    """Text to tokenise without adding special tokens, and which characters of it are trained."""

    text: str
    spans: list[Span] = field(default_factory=list)
    """Half-open character ranges, in order, without overlap."""


class ChatTemplate:
    """A tokenizer's chat template with what masking needs to know about it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat_template: Jinja source; None takes the tokenizer's own.
        template_kwargs: variables for the template, such as ``{"enable_thinking": False}``.

    Raises: DataError: there is no template.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template: str | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._override = chat_template
        self._kwargs = {**tokenizer.special_tokens_map, **(template_kwargs or {})}
        self._added = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        if not (chat_template or getattr(tokenizer, "chat_template", None)):
            raise DataError(
                "the tokenizer has no chat template: conversations cannot be rendered. Set `chat_template`, use the "
                "tokenizer "
                "of an instruction-tuned model, or use a column-mapped dataset, which needs no template."
            )

    def fingerprint(self) -> list[Any]:
        """What a rendering depends on beside the conversation, as JSON values."""
        return [self._override or self._tokenizer.chat_template, self._kwargs, self.stops]

    def render(self, conversation: Conversation, *, mask: str = "assistant") -> Rendered:
        """Render a conversation with the spans that ``mask`` (one of `MASKS`) and per-message flags select.

        Raises:
            BadRow: the template raises on this conversation, hides assistant text, or ends a turn without a stop token;
                or no assistant turn is to be trained.
        """
        if mask == "all":
            text = self._text(conversation.messages, conversation.tools)
            return Rendered(text, [(0, len(text))])
        wanted = _trained_turns(conversation, mask=mask)
        if not any(wanted):
            raise BadRow("no assistant turn to train on", path="/messages")
        try:
            return self._render_turns(conversation, wanted)
        except BadRow:
            as_text = _arguments_as_text(conversation)
            if as_text is not None:
                with suppress(BadRow):  # the first reason is the one to report
                    return self._render_turns(as_text, wanted)
            raise

    def _render_turns(self, conversation: Conversation, wanted: list[bool]) -> Rendered:
        source = self._source(conversation.tools)
        text, spans = "", None
        if _GENERATION.search(source):
            text, marked = self._render(source, conversation.messages, conversation.tools, generation=True)
            spans = [self._closed(text, span) for span in marked] if len(marked) == len(wanted) else None
        if spans is None:
            text, spans = self._spans_in_text(source, conversation, len(wanted))
        chosen = [span for span, is_wanted in zip(spans, wanted) if is_wanted]
        return self._with_final_stop(text, chosen)

    def _source(self, tools: list | None) -> str:
        if self._override is not None:
            return self._override
        return self._tokenizer.get_chat_template(None, tools)

    def _text(self, messages: Sequence[Mapping[str, Any]], tools: list | None, **flags: Any) -> str:
        return self._render(self._source(tools), messages, tools, **flags)[0]

    def _render(
        self,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        tools: list | None,
        *,
        generation: bool = False,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[Span]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=source,
                return_assistant_tokens_mask=generation,
                add_generation_prompt=add_generation_prompt,
                **self._kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise BadRow(f"the chat template raises: {error}", path="/messages") from error
        return texts[0], list(spans[0]) if spans else []

    # --- spans without the template's help
    # ----------------------------------------------------------------------------------------

    def _spans_in_text(self, source: str, conversation: Conversation, num_turns: int) -> tuple[str, list[Span]]:
        plain, _ = self._render(source, conversation.messages, conversation.tools)
        if spans := self._spans_by_prompts(plain, conversation.messages, num_turns):
            return plain, spans
        for marked_messages in marked_copies(conversation.messages):
            marked, _ = self._render(source, marked_messages, conversation.tools)
            anchors = anchors_in(marked)
            if sorted(anchors) == list(range(num_turns)) and without_markers(marked) == plain:
                return plain, self._spans_around(plain, anchors, marked_messages)
        raise BadRow(
            "the chat template hides or rewrites assistant text, so what to train on is unknown",
            path="/messages",
            hint="Add {% generation %} marks to the template, or use mask='all'.",
        )

    def _spans_by_prompts(self, text: str, messages: Sequence[Mapping[str, Any]], num_turns: int) -> list[Span] | None:
        """The turns where each is one generation prompt, the content word for word, and a stop token; else None."""
        if not self._generation_prompts or any(m.get("tool_calls") for m in messages):
            return None
        prompt = self._generation_prompts[0]
        if text.count(prompt) != num_turns or any(prompt in m["content"] for m in messages):
            return None
        spans: list[Span] = []
        for content in (m["content"].strip() for m in messages if m["role"] == "assistant"):
            start = text.find(prompt, spans[-1][1] if spans else 0) + len(prompt)
            at = text.find(content, start)
            after = at + len(content)
            stop = self._stop_after(text, after) if at >= start else None
            if stop is None or text[start:at].strip() or text[after : stop.start()].strip():
                return None
            spans.append((start, stop.end()))
        return spans

    def _spans_around(self, text: str, anchors: dict[int, int], marked: Sequence[Mapping[str, Any]]) -> list[Span]:
        spans: list[Span] = []
        context: list[str] = []
        for message in marked:
            if message["role"] != "assistant":
                context.append(str(message["content"]))
                continue
            anchor, floor = anchors[len(spans)], spans[-1][1] if spans else 0
            if anchor < floor:  # the stop that was found belongs to a later turn
                raise _no_stop()
            before, after = around_marker(message["content"])
            start = self._turn_start(text, floor, anchor, "".join(context))
            if start is None:
                start = next(
                    (anchor - len(b) for b in (before, before.lstrip()) if text.endswith(b, 0, anchor)), anchor
                )
            stop = self._stop_after(text, anchor + (len(after) if text.startswith(after, anchor) else 0))
            spans.append((start, len(text) if stop is None else stop.end()))
            context = []
        return spans

    def _turn_start(self, text: str, floor: int, anchor: int, context: str) -> int | None:
        """Where generation of the turn around ``anchor`` begins: after the generation prompt that opens it.

        A turn may hold several (one per channel), so the first one counts, unless the messages before quote it.
        """
        for prompt in self._generation_prompts:
            find = text.rfind if prompt in context else text.find
            at = find(prompt, floor, anchor)
            if at >= 0:
                return at + len(prompt)
        return None

    @cached_property
    def _generation_prompts(self) -> list[str]:
        """The template's generation prompt and its shorter forms, longest first; empty for a template without one."""
        user = [{"role": "user", "content": "hello"}]
        try:
            without, with_prompt = self._text(user, None), self._text(user, None, add_generation_prompt=True)
        except BadRow:
            return []
        # Some templates close the text with EOS unless they are asked for the prompt: what both share is the
        # conversation.
        shared = next((i for i, (a, b) in enumerate(zip(without, with_prompt)) if a != b), len(without))
        prompt = with_prompt[min([shared, *_token_starts(with_prompt, shared, self._added)]) :]
        # Past turns may lack what the prompt adds for the next one, such as an opened or empty thinking block.
        forms = [prompt, prompt.split("<think>")[0]]
        return [form for form in dict.fromkeys(forms) if form.strip()]

    # --- stop tokens ------------------------------------------------------------------------------------------------

    @cached_property
    def stops(self) -> list[str]:
        """Stop tokens: what the template puts after an assistant turn, the known names the vocabulary has, and EOS."""
        known = [token for token in _KNOWN_STOPS if token in self._added]
        return list(
            dict.fromkeys(
                [*self._template_stops, *known, *([self._tokenizer.eos_token] if self._tokenizer.eos_token else [])]
            )
        )

    @cached_property
    def _template_stops(self) -> list[str]:
        probe = "\ue000"  # a private-use character stands for the answer
        messages = [
            {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", probe), ("user", "b"))
        ]
        try:
            after = self._text(messages, None).partition(probe)[2].lstrip()
        except BadRow:
            return []
        return [token for token in self._added if after.startswith(token)][:1]

    def _stop_after(self, text: str, position: int) -> re.Match[str] | None:
        """The first stop token at or after ``position``, with those that follow it at once."""
        return self._stop_pattern.search(text, position) if self.stops else None

    @cached_property
    def _stop_pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?:{'|'.join(map(re.escape, self.stops))})+")

    def _closed(self, text: str, span: Span) -> Span:
        """A span from the template's marks, stretched over the stop token where the mark left that out."""
        start, end = span
        if text[start:end].rstrip().endswith(tuple(self.stops)):
            return start, start + len(text[start:end].rstrip())
        after = len(text) - len(text[end:].lstrip())
        for stop in self.stops:
            if text.startswith(stop, after):
                return start, after + len(stop)
        return span

    def _with_final_stop(self, text: str, spans: list[Span]) -> Rendered:
        """Require a stop token at the end of every span; the last turn gets one where the template adds none."""
        for i, (start, end) in enumerate(spans):
            if text.endswith(tuple(self.stops), start, end):
                continue
            if end < len(text.rstrip()) or not self.stops:
                raise _no_stop()
            text = text[:end] + self.stops[0]
            spans = [*spans[:i], (start, len(text))]
        return Rendered(text, spans)


def _no_stop() -> BadRow:
    return BadRow(
        "the chat template ends an assistant turn without a stop token, so a model would never learn to stop",
        path="/messages",
        hint="Use a template that closes each turn with the EOS or an end-of-turn token, or mask='all'.",
    )


def _trained_turns(conversation: Conversation, *, mask: str) -> list[bool]:
    """One flag per assistant message: the row's own flag, else the policy's."""
    turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    flags = conversation.train or [None] * len(conversation.messages)
    default = {i: mask == "assistant" or i == turns[-1] for i in turns}
    return [default[i] if flags[i] is None else bool(flags[i]) for i in turns]


def _token_starts(text: str, position: int, tokens: Sequence[str]) -> list[int]:
    """Starts of the tokens that ``position`` cuts through."""
    starts = ((text.rfind(token, 0, position + len(token)), token) for token in tokens)
    return [at for at, token in starts if 0 <= at < position < at + len(token)]


def _arguments_as_text(conversation: Conversation) -> Conversation | None:
    """The conversation with tool-call arguments as JSON text, which some templates expect; None without tool calls."""
    if not any(message.get("tool_calls") for message in conversation.messages):
        return None
    messages = []
    for message in conversation.messages:
        calls = [
            {
                **c,
                "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)},
            }
            for c in message.get("tool_calls", [])
        ]
        messages.append({**message, "tool_calls": calls} if calls else message)
    return replace(conversation, messages=messages)

"""Instruction data in columns of any name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from automodel_data.build import RowEncoder, RowPolicy, encode_source
from automodel_data.encode import TextEncoder
from automodel_data.errors import BadRow, DataError
from automodel_data.rows import Conversation
from automodel_data.sources import open_source
from automodel_data.store import TokenDataset
from automodel_data.templates import ChatTemplate, Rendered

logger = logging.getLogger(__name__)

_ROLES = ("context", "question", "answer")


class ColumnMappedTextInstructionDataset(TokenDataset):
    """Question-answer rows whose columns are named by a mapping; the answer and a stop token are trained.

    With a chat template the context and question form the user's turn. Without one the text is
    ``context question answer<eos>``, tokenised once, so that the answer's first token is trained too.

    Args:
        path_or_dataset_id: whatever `sources.open_source` reads: a file, directory, glob, URL, hub id, or loaded rows.
        column_mapping: ``{"question": column, "answer": column}`` and optionally ``"context"``.
        tokenizer: a fast Hugging Face tokenizer.
        split, name: split and configuration of a hub dataset.
        answer_only_loss_mask: False trains every token.
        use_chat_template: None uses the tokenizer's template where there is one.
        start_of_turn_token: accepted so that old configurations load, with a warning; turns are found without it.
        seq_length, overflow, on_bad, max_bad_fraction, limit_dataset_samples, num_proc, cache: as for `ChatDataset`.

    Raises: DataError: a mapping without question and answer, a column that is not there, or nothing to train on.
    """

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
        start_of_turn_token: str | None = None,
        seq_length: int | None = None,
        overflow: str = "drop",
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
        limit_dataset_samples: int | None = None,
        num_proc: int = 1,
        cache: bool = True,
    ) -> None:
        if start_of_turn_token is not None:
            logger.warning("start_of_turn_token has no effect: turns are found without it. Remove it.")
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction)
        render = qa_renderer(tokenizer, answer_only=answer_only_loss_mask, use_chat_template=use_chat_template)
        table, report = encode_source(
            open_source(path_or_dataset_id, split=split or "train", name=name),
            column_encoder(tokenizer, render, column_mapping, policy=policy),
            limit=limit_dataset_samples,
            num_proc=num_proc,
            cache=cache,
        )
        super().__init__(table, report=report)


def column_encoder(
    tokenizer: Any, render: QuestionAnswer, column_mapping: Mapping[str, str], *, policy: RowPolicy
) -> RowEncoder:
    """What makes tokens of column-mapped rows, for map-style and streaming datasets alike."""
    columns = _checked_mapping(column_mapping)
    return RowEncoder(
        partial(_render_row, columns=columns, render=render),
        TextEncoder(tokenizer),
        policy,
        add_prefix=not render.is_chat,
        options={"kind": "columns", "columns": columns, "render": render.fingerprint()},
    )


class QuestionAnswer:
    """Renders question and answer, by chat template or as plain text closed by EOS; pickles with its tokenizer."""

    def __init__(self, tokenizer: Any, *, answer_only: bool, template: ChatTemplate | None) -> None:
        self._answer_only, self._template, self._eos = answer_only, template, tokenizer.eos_token
        if template is None and not self._eos:
            raise DataError(
                "the tokenizer has no eos_token: a model trained without one never stops. Set tokenizer.eos_token."
            )

    @property
    def is_chat(self) -> bool:
        return self._template is not None

    def fingerprint(self) -> list[Any]:
        """What a rendering depends on beside the row, as JSON values."""
        return [self._answer_only, self._eos, self._template.fingerprint() if self._template else None]

    def __call__(self, prompt: str, answer: str) -> Rendered:
        """``prompt`` is context, ``answer`` is trained."""
        if not answer.strip():
            raise BadRow("the answer is empty")
        if self._template is not None:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return self._template.render(Conversation(messages), mask="assistant" if self._answer_only else "all")
        text = f"{prompt} {answer}{self._eos}"
        return Rendered(text, [(len(prompt) + 1 if self._answer_only else 0, len(text))])


def qa_renderer(tokenizer: Any, *, answer_only: bool = True, use_chat_template: bool | None = None) -> QuestionAnswer:
    """The renderer for question-answer rows; ``use_chat_template=None`` uses a template where the tokenizer has one."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    use = has_template if use_chat_template is None else use_chat_template
    return QuestionAnswer(tokenizer, answer_only=answer_only, template=ChatTemplate(tokenizer) if use else None)


def _checked_mapping(mapping: Mapping[str, str]) -> dict[str, str]:
    given = {k: v for k, v in dict(mapping).items() if v is not None}
    if not {"question", "answer"} <= set(given) <= set(_ROLES):
        raise DataError(
            f"column_mapping has the keys {sorted(given)}: 'question' and 'answer' are needed, 'context' is optional. "
            "Map each of them to a column's name."
        )
    return given


def _render_row(row: Mapping[str, Any], *, columns: Mapping[str, str], render: QuestionAnswer) -> Rendered:
    texts = {role: _text_of(row, column) for role, column in columns.items()}
    separator = "\n" if render.is_chat else " "
    prompt = separator.join(texts[role] for role in ("context", "question") if texts.get(role))
    return render(prompt, texts["answer"])


def _text_of(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise BadRow(f"missing column {column!r}", hint=f"The row has: {', '.join(sorted(map(str, row)))}.")
    value = row[column]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(
            f"column {column!r} is {'null' if value is None else type(value).__name__}, not text", path=f"/{column}"
        )
    return value

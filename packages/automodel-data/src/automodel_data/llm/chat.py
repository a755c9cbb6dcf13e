"""Chat data in any of the common formats, rendered by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from automodel_data.build import RowEncoder, RowPolicy, encode_source, one_of
from automodel_data.encode import TextEncoder, TokenRow
from automodel_data.errors import BadRow
from automodel_data.rows import FORMATS, checked_columns, sniff_format, to_conversation, with_known_columns
from automodel_data.sources import open_source
from automodel_data.store import TokenDataset
from automodel_data.templates import MASKS, ChatTemplate, Rendered


class ChatDataset(TokenDataset):
    """Messages, ShareGPT, Alpaca or prompt-completion rows; assistant turns are trained with their stop token.

    Args:
        path_or_dataset_id: whatever `sources.open_source` reads: a file, directory, glob, URL, hub id, or loaded rows.
        tokenizer: a fast Hugging Face tokenizer; needs a chat template.
        split, name: split and configuration of a hub dataset.
        seq_length: most tokens per row; None for no limit.
        overflow: for longer rows: ``drop``, ``truncate_right``, ``truncate_left`` or ``error``; counted in ``report``.
        mask: ``assistant`` trains every assistant turn, ``last_turn`` the last one, ``all`` every token. A message's
            own ``train`` (or 0/1 ``weight``) overrules the first two.
        format: one of `rows.FORMATS` but ``text``; ``auto`` looks at each row's columns.
        column_mapping: known columns (`rows.COLUMNS`) -> the data's names, such as ``{"messages": "dialog"}``.
        chat_template, template_kwargs: in place of the tokenizer's template; variables for it.
        on_bad, max_bad_fraction: ``skip`` leaves bad rows out and reports them, ``fail`` stops at the first.
        limit_dataset_samples: use only the first rows.
        num_proc, cache: as for `build.encode_source`.

    Raises: DataError: nothing to read, no template, or nothing to train on.
    """

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
        max_bad_fraction: float = 0.01,
        limit_dataset_samples: int | None = None,
        num_proc: int = 1,
        cache: bool = True,
    ) -> None:
        policy = RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction)
        template = ChatTemplate(tokenizer, chat_template=chat_template, template_kwargs=template_kwargs)
        table, report = encode_source(
            open_source(path_or_dataset_id, split=split, name=name),
            chat_encoder(tokenizer, template, policy=policy, mask=mask, format=format, column_mapping=column_mapping),
            limit=limit_dataset_samples,
            num_proc=num_proc,
            cache=cache,
        )
        super().__init__(table, report=report)


def chat_encoder(
    tokenizer: Any,
    template: ChatTemplate,
    *,
    policy: RowPolicy,
    mask: str = "assistant",
    format: str = "auto",
    column_mapping: Mapping[str, str] | None = None,
) -> RowEncoder:
    """What makes tokens of chat rows, for map-style and streaming datasets alike."""
    one_of("mask", mask, MASKS)
    one_of("format", format, ("auto", *(known for known in FORMATS if known != "text")))
    columns = checked_columns(column_mapping)
    return RowEncoder(
        partial(render_chat_row, template=template, mask=mask, format=format, columns=columns),
        TextEncoder(tokenizer),
        policy,
        options={
            "kind": "chat",
            "mask": mask,
            "format": format,
            "columns": columns,
            "template": template.fingerprint(),
        },
    )


def render_chat_row(
    row: Mapping[str, Any], *, template: ChatTemplate, mask: str, format: str, columns: Mapping[str, str]
) -> Rendered | TokenRow:
    """A raw row as text with trained spans; rows that hold ``input_ids`` pass through."""
    row = with_known_columns(row, columns)
    kind = sniff_format(row) if format == "auto" else format
    if kind == "tokens":
        return token_row(row)
    return template.render(to_conversation(row, kind), mask=mask)


def token_row(row: Mapping[str, Any]) -> TokenRow:
    """A pre-tokenised row; without labels every token is trained. Raises: BadRow: not lists of equal length."""
    ids = row.get("input_ids")
    labels = row.get("labels", ids)
    if not isinstance(ids, (list, np.ndarray)) or not isinstance(labels, (list, np.ndarray)) or len(ids) != len(labels):
        raise BadRow("input_ids and labels must be lists of equal length", path="/input_ids")
    try:
        tokens = TokenRow(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32))
    except (TypeError, ValueError, OverflowError):
        tokens = None
    if tokens is None or tokens.input_ids.ndim != 1 or (tokens.input_ids < 0).any():
        raise BadRow("input_ids or labels hold something that is no token id", path="/input_ids")
    return tokens

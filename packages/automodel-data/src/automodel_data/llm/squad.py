"""SQuAD, or any data of its shape: context, question, answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from automodel_data.build import RowEncoder, RowPolicy, encode_source
from automodel_data.encode import TextEncoder
from automodel_data.errors import BadRow
from automodel_data.llm.column_mapped import QuestionAnswer, qa_renderer
from automodel_data.sources import open_source
from automodel_data.store import TokenDataset
from automodel_data.templates import Rendered


def make_squad_dataset(
    tokenizer: Any,
    seq_length: int | None = None,
    limit_dataset_samples: int | None = None,
    *,
    split: str = "train",
    dataset_name: Any = "rajpurkar/squad",
    overflow: str = "drop",
    use_chat_template: bool | None = None,
    on_bad: str = "skip",
    max_bad_fraction: float = 0.01,
) -> TokenDataset:
    """SQuAD rows: the first gold answer and a stop token are trained.

    Args:
        tokenizer: a fast Hugging Face tokenizer; its chat template is used where it has one.
        seq_length, overflow, limit_dataset_samples, on_bad, max_bad_fraction: as for `ChatDataset`.
        split: split of a hub dataset.
        dataset_name: hub id, or a local ``.jsonl`` file with ``context``, ``question`` and ``answers``.
    """
    render = qa_renderer(tokenizer, use_chat_template=use_chat_template)
    row_encoder = RowEncoder(
        partial(_render_row, render=render),
        TextEncoder(tokenizer),
        RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction),
        add_prefix=not render.is_chat,
    )
    table, report = encode_source(open_source(dataset_name, split=split), row_encoder, limit=limit_dataset_samples)
    return TokenDataset(table, report=report)


def _render_row(row: Mapping[str, Any], *, render: QuestionAnswer) -> Rendered:
    missing = {"context", "question", "answers"} - set(row)
    if missing:
        raise BadRow(f"missing column {sorted(missing)}", hint=f"The row has: {', '.join(sorted(map(str, row)))}.")
    answers = row["answers"]
    texts = answers.get("text") if isinstance(answers, Mapping) else answers
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise BadRow("no gold answer", path="/answers/text")
    return render(f"Context: {row['context']} Question: {row['question']} Answer:", texts[0].strip())

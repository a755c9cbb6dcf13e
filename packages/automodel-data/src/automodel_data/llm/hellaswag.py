"""HellaSwag: a context, and the ending that fits it."""

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


class HellaSwag(TokenDataset):
    """HellaSwag rows as plain text: the gold ending and EOS are trained. No code of the dataset's repository is run.

    Args:
        path_or_dataset: hub id, a local ``.jsonl`` file with ``ctx``, ``endings`` and ``label``, or loaded rows.
        tokenizer: a fast Hugging Face tokenizer with an ``eos_token``.
        split: split of a hub dataset.
        num_samples_limit: use only the first rows.
        seq_length, overflow, on_bad, max_bad_fraction: as for `ChatDataset`.
    """

    def __init__(
        self,
        path_or_dataset: Any,
        tokenizer: Any,
        split: str = "train",
        num_samples_limit: int | None = None,
        *,
        seq_length: int | None = None,
        overflow: str = "drop",
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
    ) -> None:
        row_encoder = RowEncoder(
            partial(_render_row, render=qa_renderer(tokenizer, use_chat_template=False)),
            TextEncoder(tokenizer),
            RowPolicy(seq_length=seq_length, overflow=overflow, on_bad=on_bad, max_bad_fraction=max_bad_fraction),
            add_prefix=True,
        )
        table, report = encode_source(open_source(path_or_dataset, split=split), row_encoder, limit=num_samples_limit)
        super().__init__(table, report=report)


def _render_row(row: Mapping[str, Any], *, render: QuestionAnswer) -> Rendered:
    missing = {"ctx", "endings", "label"} - set(row)
    if missing:
        raise BadRow(f"missing column {sorted(missing)}", hint=f"The row has: {', '.join(sorted(map(str, row)))}.")
    endings = row["endings"]
    try:
        ending = endings[int(row["label"])]
    except (TypeError, ValueError, IndexError):
        raise BadRow(
            "the label names no ending", path="/label", hint="The test split has no labels; use train or validation."
        ) from None
    return render(str(row["ctx"]).rstrip(), str(ending).strip())

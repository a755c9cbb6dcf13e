"""Plain text for pretraining: documents joined by EOS and cut into blocks of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from automodel_data.build import RowEncoder, RowPolicy, encode_source
from automodel_data.encode import TextEncoder
from automodel_data.errors import BadRow, DataError
from automodel_data.sources import TextDocuments, open_source
from automodel_data.store import EncodeReport
from automodel_data.templates import Rendered


class TextPretrainDataset:
    """Blocks of exactly ``seq_length`` tokens over all documents; every token is trained.

    Args:
        path_or_dataset_id: a plain ``.txt`` file (documents are separated by blank lines when ``split_documents``), a
            ``.jsonl`` file with a ``text`` column, or a hub id.
        tokenizer: a fast Hugging Face tokenizer with an ``eos_token``, which closes every document.
        seq_length: tokens per block; the rest after the last full block is left out and counted in ``num_tokens_cut``.
        split, name: split and configuration of a hub dataset.
        text_column: where the text is.
        split_documents: blank lines separate the documents of a ``.txt`` file; False takes it as one document.
        limit_dataset_samples: use only the first documents.
        on_bad, max_bad_fraction, num_proc, cache: as for `ChatDataset`.

    Raises: DataError: nothing to read, or less text than one block.
    """

    def __init__(
        self,
        path_or_dataset_id: Any,
        tokenizer: Any,
        *,
        seq_length: int,
        split: str = "train",
        name: str | None = None,
        text_column: str = "text",
        split_documents: bool = True,
        on_bad: str = "skip",
        max_bad_fraction: float = 0.01,
        limit_dataset_samples: int | None = None,
        num_proc: int = 1,
        cache: bool = True,
    ) -> None:
        if not tokenizer.eos_token:
            raise DataError(
                "the tokenizer has no eos_token: documents could not be told apart. Set tokenizer.eos_token."
            )
        source: Any
        if isinstance(path_or_dataset_id, (str, Path)) and str(path_or_dataset_id).endswith(".txt"):
            source = TextDocuments(path_or_dataset_id, split_documents=split_documents)
        else:
            source = open_source(path_or_dataset_id, split=split, name=name)
        row_encoder = RowEncoder(
            _TextRow(text_column, tokenizer.eos_token),
            TextEncoder(tokenizer),
            RowPolicy(on_bad=on_bad, max_bad_fraction=max_bad_fraction),
            add_prefix=True,
            options={"kind": "pretrain", "column": text_column, "eos": tokenizer.eos_token},
        )
        table, self.report = encode_source(
            source, row_encoder, limit=limit_dataset_samples, num_proc=num_proc, cache=cache
        )
        self._tokens = _joined(table)
        self.seq_length = seq_length
        self.report.num_tokens_cut = len(self._tokens) % seq_length
        if len(self) == 0:
            raise DataError(
                f"{source.name} holds {len(self._tokens)} tokens, less than seq_length={seq_length}. Add text, or "
                f"lower it."
            )

    report: EncodeReport

    def __len__(self) -> int:
        return len(self._tokens) // self.seq_length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        ids = self._tokens[index * self.seq_length : (index + 1) * self.seq_length].tolist()
        return {"input_ids": ids, "labels": list(ids)}

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self), self.seq_length, dtype=np.int64)


class _TextRow:
    def __init__(self, column: str, eos_token: str) -> None:
        self._column, self._eos = column, eos_token

    def __call__(self, row: Mapping[str, Any]) -> Rendered:
        if self._column not in row:
            raise BadRow(f"missing column {self._column!r}", hint=f"The row has: {', '.join(sorted(map(str, row)))}.")
        text = row[self._column]
        if not isinstance(text, str) or not text.strip():
            raise BadRow("no text", path=f"/{self._column}")
        return Rendered(text + self._eos, [(0, len(text) + len(self._eos))])


def _joined(table: Any) -> np.ndarray:
    """All tokens of a table, one document after the other; int32."""

    def chunks() -> Iterator[np.ndarray]:
        for chunk in table.data.column("input_ids").chunks:
            yield chunk.flatten().to_numpy()

    return np.concatenate(list(chunks())).astype(np.int32)

"""Made-up rows of random token ids, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np

from automodel_data.encode import TokenRow
from automodel_data.errors import DataError
from automodel_data.store import EncodeReport, TokenDataset, token_table


def build_unpacked_dataset(
    *,
    num_sentences: int = 10,
    mean_len: float = 20.0,
    std_len: float = 6.0,
    vocab_size: int = 1000,
    max_sentence_len: int = 64,
    seed: int = 0,
    tokenizer: Any = None,
) -> TokenDataset:
    """Rows of random ids in ``[2, vocab_size)`` that end in id 1; every token is trained.

    Args:
        num_sentences: rows.
        mean_len, std_len: normal distribution of lengths in tokens, cut to ``[2, max_sentence_len]``.
        vocab_size: ids lie below it; a ``tokenizer`` overrules it with its own size.
        seed: names the data.
    """
    if tokenizer is not None:
        vocab_size = len(tokenizer)
    if num_sentences < 1 or vocab_size < 3 or max_sentence_len < 2:
        raise DataError(
            f"num_sentences={num_sentences}, vocab_size={vocab_size}, max_sentence_len={max_sentence_len}: at least 1, "
            f"3 and 2 are needed."
        )
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.normal(mean_len, std_len, num_sentences).round(), 2, max_sentence_len).astype(int)
    rows = [np.append(rng.integers(2, vocab_size, n - 1), 1).astype(np.int32) for n in lengths]
    report = EncodeReport(num_rows=len(rows), num_kept=len(rows), num_tokens=int(lengths.sum()))
    report.num_label_tokens = report.num_tokens - len(rows)
    return TokenDataset(token_table((i, TokenRow(row, row)) for i, row in enumerate(rows)), report=report)

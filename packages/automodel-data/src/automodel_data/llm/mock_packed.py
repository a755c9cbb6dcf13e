"""Made-up packed rows, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

from automodel_data.llm.mock import build_unpacked_dataset
from automodel_data.packing import PackedDataset, PackedSequence


def build_packed_dataset(
    *,
    packed_sequence_size: int = 128,
    split_across_pack: bool = False,
    max_packs: int | None = None,
    strategy: str = "bfd",
    num_sentences: int = 10,
    mean_len: float = 20.0,
    std_len: float = 6.0,
    vocab_size: int = 1000,
    max_sentence_len: int = 64,
    seed: int = 0,
    tokenizer: Any = None,
) -> PackedDataset:
    """`mock.build_unpacked_dataset`, packed by `PackedSequence`; arguments as there."""
    rows = build_unpacked_dataset(
        num_sentences=num_sentences,
        mean_len=mean_len,
        std_len=std_len,
        vocab_size=vocab_size,
        max_sentence_len=min(max_sentence_len, packed_sequence_size),
        seed=seed,
        tokenizer=tokenizer,
    )
    return PackedSequence(
        rows,
        packed_sequence_size=packed_sequence_size,
        split_across_pack=split_across_pack,
        max_packs=max_packs,
        strategy=strategy,
        seed=seed,
    ).pack()

from __future__ import annotations

import pytest
import torch

from automodel_data.collate import default_collater, packed_collater
from automodel_data.errors import DataError
from automodel_data.llm.mock_packed import build_packed_dataset


def test_contract_of_a_packed_batch():
    rows = build_packed_dataset(num_sentences=20, packed_sequence_size=64)
    batch = packed_collater([rows[0], rows[1]], pad_seq_len_divisible=40)
    b, t = batch["input_ids"].shape
    assert (b, t) == (2, 80)
    assert "attention_mask" not in batch
    cumulative = batch["cu_seq_lens_q"]
    assert cumulative.dtype == torch.int32
    assert (cumulative[0], cumulative[-1]) == (0, b * t)
    assert torch.equal(cumulative, batch["cu_seq_lens_k"])
    assert batch["max_length_q"] == batch["max_length_k"] == int(cumulative.diff().max())
    starts = batch["position_ids"].flatten() == 0
    assert starts.nonzero().squeeze(1).tolist() == cumulative[:-1].tolist()
    assert (batch["labels"].flatten()[starts] == -100).all()
    assert (batch["seq_idx"].diff(dim=1) == starts.view(b, t)[:, 1:].int()).all()
    assert (batch["seq_idx"][:, 0] == 0).all()
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()
    picked = shifted[batch["label_index"]]
    assert (picked != -100).sum() == (shifted != -100).sum()
    for i in range(2):
        n = len(rows[i]["input_ids"])
        assert batch["input_ids"][i, :n].tolist() == rows[i]["input_ids"]
        assert (batch["labels"][i, n:] == -100).all()


def test_default_collater_recognises_packed_rows():
    rows = build_packed_dataset()
    assert default_collater([rows[0]]).keys() == packed_collater([rows[0]]).keys()


def test_lengths_that_do_not_add_up_are_refused():
    row = {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 2], "seq_lens": [2]}
    with pytest.raises(DataError, match="seq_lens that sum to 2"):
        packed_collater([row])

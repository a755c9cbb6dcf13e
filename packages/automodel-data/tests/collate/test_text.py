from __future__ import annotations

import pytest
import torch

from automodel_data.collate import default_collater
from automodel_data.errors import DataError


def row(ids, labels=None, **extra):
    return {"input_ids": ids, "labels": list(ids) if labels is None else labels, **extra}


def test_pads_by_position_even_where_the_pad_token_is_trained():
    batch = default_collater([row([5, 0, 0]), row([0])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 0, 0], [0, 0, 0]]
    assert batch["labels"].tolist() == [[5, 0, 0], [0, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert all(v.dtype == torch.int64 for v in batch.values())


@pytest.mark.parametrize(("divisible", "length"), [(None, 3), (1, 3), (3, 3), (8, 8)])
def test_length_is_rounded_up_and_not_beyond(divisible, length):
    assert default_collater([row([1, 2, 3])], pad_seq_len_divisible=divisible)["labels"].shape == (1, length)


def test_label_index_points_at_every_shifted_label_and_pads_with_an_ignored_one():
    rows = [row([1, 2, 3, 4], [-100, -100, 3, 4]), row([5, 6], [-100, 6]), row([7], [7])]
    batch = default_collater(rows)
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()
    index = batch["label_index"]
    assert len(index) % 8 == 0
    picked = shifted[index]
    assert sorted(picked[picked != -100].tolist()) == sorted(shifted[shifted != -100].tolist()) == [3, 4, 6]
    assert (picked[3:] == -100).all()


def test_label_index_with_nothing_supervised():
    batch = default_collater([row([1, 2], [-100, -100])])
    assert batch["label_index"].tolist() == [1] * 8


def test_sample_ids_and_other_token_keys_are_carried():
    batch = default_collater(
        [row([1, 2], token_type_ids=[0, 1], sample_id=4), row([3], token_type_ids=[1], sample_id=9)]
    )
    assert batch["sample_ids"].tolist() == [4, 9]
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]


def test_shifted_labels_are_refused_with_the_way_out_and_then_shifted_back():
    shifted = row([1, 2, 3, 4], [-100, 3, 4, -100])
    with pytest.raises(DataError, match="labels_are_shifted: true"):
        default_collater([shifted])
    assert default_collater([shifted], labels_are_shifted=True)["labels"].tolist() == [[-100, -100, 3, 4]]
    with pytest.raises(DataError, match="Leave the setting out"):
        default_collater([row([1, 2, 3, 4], [-100, 2, 3, 4])], labels_are_shifted=True)


def test_repeated_tokens_are_not_mistaken_for_a_shift():
    assert default_collater([row([7, 7, 7], [-100, 7, 7])])["labels"].tolist() == [[-100, 7, 7]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got no rows"),
        ([{"input_ids": [1]}], r"\['labels'\] must be among them"),
        ([row([1, 2], [1])], "2 input_ids and 1 labels"),
        ([row([], [])], "same length >= 1"),
        ([row([1, 2], extra=[1])], "'extra' has length 1"),
    ],
)
def test_bad_rows_say_what_is_wrong(rows, message):
    with pytest.raises(DataError, match=message):
        default_collater(rows)

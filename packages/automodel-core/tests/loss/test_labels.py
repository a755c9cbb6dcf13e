import pytest
import torch

from automodel_core.loss import count_label_tokens, label_index, shift_labels


def test_shift_moves_labels_one_place_left_in_a_new_batch():
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])}
    shifted = shift_labels(batch)
    assert shifted["shift_labels"].tolist() == [[6, 7, -100]]
    assert "labels" not in shifted
    assert "labels" in batch


def test_count_sums_over_batches():
    rows = [{"shift_labels": torch.tensor([[1, -100], [0, 2]])}, {"shift_labels": torch.tensor([[-100, -100]])}]
    count = count_label_tokens(rows)
    assert count.dtype == torch.int64
    assert int(count) == 3


def test_index_pads_with_an_ignored_position():
    labels = torch.tensor([[4, -100, 5], [-100, 6, -100]])
    assert label_index(labels).tolist() == [0, 2, 4]
    assert label_index(labels, multiple=4).tolist() == [0, 2, 4, 1]


@pytest.mark.parametrize("bad", [{"input_ids": torch.zeros(1, 2)}, {"labels": torch.zeros(3)}])
def test_shift_refuses_a_batch_without_labels_in_rows(bad):
    with pytest.raises(ValueError, match=r"needs 'labels' \[B, T\]"):
        shift_labels(bad)


def test_count_refuses_unshifted_and_no_batches():
    with pytest.raises(ValueError, match="needs 'shift_labels'"):
        count_label_tokens([{"labels": torch.zeros(1, 2)}])
    with pytest.raises(ValueError, match="got no batch"):
        count_label_tokens([])

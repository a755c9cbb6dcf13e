"""Packing: every token once, no pack too long, and best-fit as good as a search would find."""

from __future__ import annotations

import numpy as np
import pytest

from automodel_data.errors import DataError
from automodel_data.llm.mock import build_unpacked_dataset
from automodel_data.llm.mock_packed import build_packed_dataset
from automodel_data.packing import STRATEGIES, PackedSequence, pack_lengths


def lognormal(n: int, mean: float, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(mean) - 0.32, 0.8, n), 1, size).astype(int)


def best_fit_decreasing_by_search(lengths: list[int], size: int) -> int:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(size - length)
    return len(rooms)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_every_document_is_in_exactly_one_pack_that_holds_it(strategy, size):
    lengths = np.minimum(lognormal(500, 30, 64), size)
    packs = pack_lengths(lengths, size, strategy=strategy, window=100)
    assert np.array_equal(np.sort(packs.document), np.arange(500))
    assert np.array_equal(packs.length, lengths[packs.document])
    assert max(sum(n for _, _, n in packs.pieces(p)) for p in range(len(packs))) <= size


@pytest.mark.parametrize("seed", range(5))
def test_bitset_best_fit_opens_as_many_packs_as_an_exhaustive_best_fit(seed):
    lengths = lognormal(400, 30, 100, seed)
    assert len(pack_lengths(lengths, 100)) == best_fit_decreasing_by_search(lengths.tolist(), 100)


@pytest.mark.parametrize("mean", [400, 1700])
def test_utilisation_of_long_data(mean):
    lengths = lognormal(30_000, mean, 4096)
    assert pack_lengths(lengths, 4096).utilisation(4096) > 0.998
    assert pack_lengths(lengths, 4096, strategy="window").utilisation(4096) > 0.98


def test_sequential_keeps_the_order_of_documents():
    packs = pack_lengths(np.array([3, 3, 3, 5, 1]), 6, strategy="sequential")
    assert [[d for d, _, _ in packs.pieces(p)] for p in range(len(packs))] == [[0, 1], [2], [3, 4]]


def test_split_across_pack_fills_every_pack_and_keeps_every_token():
    rows = build_unpacked_dataset(num_sentences=40)
    packed = PackedSequence(rows, packed_sequence_size=50, split_across_pack=True).pack()
    assert [len(packed[i]["input_ids"]) for i in range(len(packed) - 1)] == [50] * (len(packed) - 1)
    joined = [token for i in range(len(packed)) for token in packed[i]["input_ids"]]
    assert joined == [token for i in range(len(rows)) for token in rows[i]["input_ids"]]
    assert all(row["labels"][0] == -100 for row in (packed[i] for i in range(len(packed))))


def test_rows_isolate_documents():
    rows = build_unpacked_dataset(num_sentences=30)
    packed = PackedSequence(rows, packed_sequence_size=100).pack()
    seen = []
    for i in range(len(packed)):
        row = packed[i]
        start = 0
        for n, document in zip(row["seq_lens"], row["sample_id"], strict=True):
            piece = slice(start, start + n)
            assert row["input_ids"][piece] == rows[document]["input_ids"]
            assert row["labels"][piece] == [-100, *rows[document]["labels"][1:]]
            assert row["position_ids"][piece] == list(range(n))
            start += n
            seen.append(document)
        assert start == len(row["input_ids"]) <= 100
    assert sorted(seen) == list(range(30))


def test_pack_order_is_not_sorted_by_length_and_depends_on_the_seed():
    rows = build_unpacked_dataset(num_sentences=300, mean_len=30, std_len=12)
    orders = [PackedSequence(rows, packed_sequence_size=64, seed=s).pack().packs.document for s in (0, 0, 1)]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    longest = np.maximum.reduceat(rows.lengths[orders[0]], np.arange(0, 300, 10))
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.5


def test_max_packs():
    assert len(build_packed_dataset(num_sentences=50, max_packs=3)) == 3


def test_a_document_longer_than_a_pack_is_refused_or_dropped_and_counted():
    rows = build_unpacked_dataset(num_sentences=20, mean_len=40)
    with pytest.raises(DataError, match=r"longer than packed_sequence_size=30.*drop_long_samples or split_across_pack"):
        PackedSequence(rows, packed_sequence_size=30).pack()
    packing = PackedSequence(rows, packed_sequence_size=40, drop_long_samples=True)
    packed = packing.pack()
    assert packing.num_dropped == int((rows.lengths > 40).sum()) > 0
    assert len(packed.packs.document) == 20 - packing.num_dropped
    with pytest.raises(DataError, match="nothing to pack"):
        PackedSequence(rows, packed_sequence_size=2, drop_long_samples=True).pack()


def test_unknown_strategy_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'greedy' is not known. Choose one of bfd, window, sequential"):
        pack_lengths(np.array([1]), 4, strategy="greedy")


def test_a_split_of_packs_is_said_to_have_no_effect(caplog):
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}]
    PackedSequence(rows, "train", packed_sequence_size=4)
    assert "packed_sequence.split has no effect" in caplog.text

from __future__ import annotations

import itertools

import numpy as np
import pytest

from automodel_data.collate import default_collater
from automodel_data.errors import DataError
from automodel_data.llm.mock import build_unpacked_dataset
from automodel_data.loader import build_dataloader
from automodel_data.mixing import MixedDataset


@pytest.fixture(scope="module")
def sources():
    return {
        "short": build_unpacked_dataset(num_sentences=300, mean_len=10, std_len=2, seed=0),
        "long": build_unpacked_dataset(num_sentences=100, mean_len=50, std_len=5, seed=1),
        "rare": build_unpacked_dataset(num_sentences=40, mean_len=20, std_len=3, seed=2),
    }


def test_every_prefix_is_within_one_row_of_the_weights(sources):
    weights = {"short": 0.5, "long": 0.3, "rare": 0.2}
    mixed = MixedDataset(sources, weights, num_samples=1000)
    origins = [mixed.origin(i)[0] for i in range(len(mixed))]
    for n in (1, 7, 10, 99, 500, 1000):
        for name, weight in weights.items():
            assert abs(origins[:n].count(name) - weight * n) <= 1.5
    shares = {share.name: share for share in mixed.shares()}
    assert shares["rare"].num_samples == 200
    assert shares["rare"].epochs == 5.0


def test_each_epoch_of_a_source_has_each_row_once_in_another_order(sources):
    mixed = MixedDataset(sources, {"short": 1, "long": 1, "rare": 2}, num_samples=320)
    rare = [row for name, row in (mixed.origin(i) for i in range(320)) if name == "rare"]
    assert len(rare) == 160
    epochs = [rare[i : i + 40] for i in range(0, 160, 40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_weights_by_tokens(sources):
    mixed = MixedDataset(sources, {"short": 1, "long": 1, "rare": 2}, by="tokens", num_samples=3000)
    shares = {share.name: share.token_share for share in mixed.shares()}
    assert shares == pytest.approx({"short": 0.25, "long": 0.25, "rare": 0.5}, abs=0.01)


def test_without_weights_every_row_is_there_once(sources):
    mixed = MixedDataset(sources)
    assert len(mixed) == 440
    assert len({mixed.origin(i) for i in range(440)}) == 440
    assert mixed.lengths.tolist() == [len(mixed[i]["input_ids"]) for i in range(440)]


def test_a_weight_of_zero_leaves_a_source_out(sources):
    mixed = MixedDataset(sources, {"short": 1, "long": 0, "rare": 0}, num_samples=50)
    assert {mixed.origin(i)[0] for i in range(50)} == {"short"}


def test_a_mixture_resumes_exactly(sources):
    def loader():
        mixed = MixedDataset(sources, {"short": 3, "long": 2, "rare": 1}, num_samples=60, seed=4)
        return build_dataloader(mixed, collate_fn=default_collater, global_batch_size=8, local_batch_size=8, seed=1)

    whole = [batch["input_ids"].tolist() for batch in loader()]
    stopped = loader()
    first = [batch["input_ids"].tolist() for batch in itertools.islice(stopped, 3)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [batch["input_ids"].tolist() for batch in resumed] == whole


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"short": 1}, "must name the same"),
        ({"short": 1, "long": -1, "rare": 1}, "each must be a number >= 0"),
        ({"short": 0, "long": 0, "rare": 0}, "one above 0"),
        ({"short": np.nan, "long": 1, "rare": 1}, "each must be a number"),
    ],
)
def test_bad_weights(sources, weights, message):
    with pytest.raises(DataError, match=message):
        MixedDataset(sources, weights)


def test_no_datasets_and_unknown_units():
    with pytest.raises(DataError, match="no datasets"):
        MixedDataset({})
    with pytest.raises(DataError, match="by='bytes'"):
        MixedDataset({"a": build_unpacked_dataset()}, by="bytes")

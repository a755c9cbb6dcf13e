from __future__ import annotations

import numpy as np
import pytest

from automodel_data.order import permuted


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 1024, 1025, 20_000])
@pytest.mark.parametrize("seed", [0, 1, -5, 2**40])
def test_every_index_appears_exactly_once(n, seed):
    for epoch in (0, 1):
        order = permuted(np.arange(n), num_samples=n, seed=seed, epoch=epoch)
        assert np.array_equal(np.sort(order), np.arange(n))


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    whole = permuted(np.arange(1000), num_samples=1000, seed=3, epoch=2)
    again = np.concatenate(
        [permuted(np.arange(a, min(a + 7, 1000)), num_samples=1000, seed=3, epoch=2) for a in range(0, 1000, 7)]
    )
    assert np.array_equal(whole, again)
    for seed, epoch in ((3, 3), (4, 2), (2, 3)):
        other = permuted(np.arange(1000), num_samples=1000, seed=seed, epoch=epoch)
        assert (other == whole).mean() < 0.02


def test_the_order_looks_random():
    n = 4000
    order = permuted(np.arange(n), num_samples=n, seed=0, epoch=0)
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    # where each of few samples lands, over epochs, is spread evenly
    spots = np.array([permuted(np.arange(8), num_samples=8, seed=0, epoch=e) for e in range(800)])
    counts = np.array([[(spots[:, i] == j).sum() for j in range(8)] for i in range(8)])
    assert counts.min() > 60
    assert counts.max() < 145


def test_memory_does_not_grow_with_the_dataset():
    few = permuted(np.arange(10), num_samples=10**15, seed=0, epoch=0)
    assert len(set(few.tolist())) == 10
    assert few.max() < 10**15

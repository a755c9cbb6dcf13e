"""The order of samples: which global batch, on which rank, after any kill and on any number of ranks."""

from __future__ import annotations

import itertools

import pytest
import torch

from automodel_data.collate import default_collater
from automodel_data.errors import DataError
from automodel_data.loader import BatchPlan, build_dataloader, build_eval_dataloader
from automodel_data.packing import PackedSequence


class Rows:
    """Row ``i`` has ``1 + i % 5`` tokens; token 0 of it is ``i``."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        ids = [i] + [7] * (1 + i % 5)
        return {"input_ids": ids, "labels": list(ids)}


def loaders(
    n: int, world: int, *, gbs: int = 8, lbs: int = 2, workers: int = 0, seed: int = 3, dataset=None, **options
):
    return [
        build_dataloader(
            dataset or Rows(n),
            collate_fn=default_collater,
            global_batch_size=gbs,
            local_batch_size=lbs,
            dp_rank=rank,
            dp_size=world,
            seed=seed,
            num_workers=workers,
            **options,
        )
        for rank in range(world)
    ]


def ids(batch) -> list[int]:
    return [i for i in batch["sample_ids"].tolist() if i >= 0]


def windows(ranks, num_micro: int | None = None) -> list[list[int]]:
    """Sample ids of each global batch, taken from the ranks' iterators in lockstep."""
    plan = ranks[0].plan
    steps, out = zip(*(itertools.islice(loader, num_micro) for loader in ranks)), []
    start = ranks[0].state_dict()["cursor"] // plan.global_batch_size
    for window in itertools.count(start):
        micros = list(itertools.islice(steps, plan.micro_batches_in(window) if window < plan.windows_per_epoch else 1))
        if not micros:
            return out
        out.append([i for rank in zip(*micros) for batch in rank for i in ids(batch)])
    raise AssertionError


@pytest.mark.parametrize("n", [1, 3, 8, 29, 64])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_sample_once_per_epoch_and_the_same_global_batches_on_any_world(n, world):
    alone = windows(loaders(n, 1))
    assert sorted(i for window in alone for i in window) == list(range(n))
    ranks = loaders(n, world)
    assert len({len(loader) for loader in ranks}) == 1
    assert windows(ranks) == alone
    # and the split into micro-batches does not matter either
    assert windows(loaders(n, world, lbs=3)) == alone


def test_filler_rows_train_nothing_and_even_out_the_ranks():
    ranks = loaders(3, 4, gbs=8, lbs=2)
    batches = [list(loader) for loader in ranks]
    assert [len(b) for b in batches] == [1, 1, 1, 1]
    filler = next(b[0] for b in batches if b[0]["sample_ids"].tolist() == [-1])
    assert (filler["labels"] == -100).all()
    assert filler["input_ids"].max() > 0
    assert sum((b[0]["sample_ids"] >= 0).sum().item() for b in batches) == 3


N, GBS = 29, 8  # windows of 8, 8, 8, 5
KILLS = {
    "before the first batch": 0,
    "inside a window": 3,
    "at a window's end": 4,
    "before the partial window": 12,
    "after the last batch": None,
    "in the second epoch": 1,
}


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.more)])
def test_resume_gives_the_same_global_batches(kill, before, after, workers):
    reference = loaders(N, 1, gbs=GBS, lbs=1)
    epochs = [windows(reference), windows(reference), windows(reference)]
    ranks = loaders(N, before, gbs=GBS, lbs=1, workers=workers)
    seen: list[list[int]] = []
    epoch = 0
    if kill == "in the second epoch":
        assert windows(ranks) == epochs[0]
        epoch = 1
    num = KILLS[kill]
    num_micro = None if num is None else min(num * (GBS // before) // 4, len(ranks[0]))
    iterators = [iter(loader) for loader in ranks]
    taken = list(zip(*([list(itertools.islice(it, num_micro)) for it in iterators])))
    states = [loader.state_dict() for loader in ranks]
    assert all(state == states[0] for state in states)
    assert all(isinstance(value, int) for value in states[0].values())

    resumed = loaders(N, after, gbs=GBS, lbs=1, workers=workers)
    for loader in resumed:
        loader.load_state_dict(states[0])
    done = states[0]["cursor"] // GBS
    if num is None:
        assert (states[0]["epoch"], done) == (1, 0)
        assert windows(resumed) == epochs[1]
    else:
        seen = epochs[epoch][:done] + windows(resumed)
        assert seen == epochs[epoch]
    # what was consumed before the kill is a prefix of the same epoch, and the next epoch follows on
    consumed = {i for step in taken for batch in step for i in ids(batch)}
    upto = done if num is not None else len(epochs[0])
    assert {i for window in epochs[epoch][:upto] for i in window} <= consumed
    assert windows(resumed) == epochs[epoch + 1 if num is not None else 2]


@pytest.mark.parametrize("strategy", ["bfd", "sequential"])
def test_packed_rows_resume_the_same_way(strategy):
    def packed():
        return PackedSequence(Rows(40), packed_sequence_size=16, strategy=strategy).pack()

    reference = windows(loaders(0, 1, gbs=4, lbs=1, dataset=packed()))
    assert sorted(i for window in reference for i in window) == list(range(40))
    ranks = loaders(0, 2, gbs=4, lbs=1, dataset=packed())
    list(zip(*(itertools.islice(loader, 3) for loader in ranks)))  # stop inside the second window
    resumed = loaders(0, 1, gbs=4, lbs=1, dataset=packed())
    resumed[0].load_state_dict(ranks[1].state_dict())
    assert reference[:1] + windows(resumed) == reference


def test_workers_do_not_change_the_order():
    assert windows(loaders(29, 2, workers=2)) == windows(loaders(29, 2, workers=0))


def test_going_on_after_a_break_loses_and_repeats_nothing():
    loader = loaders(29, 1)[0]
    first = [ids(batch) for batch in itertools.islice(loader, 5)]
    rest = [ids(batch) for batch in loader]
    assert sorted(i for batch in first + rest for i in batch) == list(range(29))
    assert loader.epoch == 1


def test_epochs_differ_and_shuffle_off_keeps_the_order():
    loader = loaders(29, 1)[0]
    first, second = windows([loader]), windows([loader])
    assert first != second
    kept = loaders(29, 1, shuffle=False)[0]
    assert [i for window in windows([kept]) for i in window] == list(range(29))


def test_iterating_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(loaders(9, 1)[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("option", "value"), [("seed", 4), ("global_batch_size", 4), ("num_samples", 30), ("shuffle", 0)]
)
def test_a_state_of_another_order_is_refused(option, value):
    state = {**loaders(29, 1)[0].state_dict(), option: value}
    with pytest.raises(DataError, match=f"{option}={value}.*Restore the setting"):
        loaders(29, 1)[0].load_state_dict(state)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_evaluation_covers_each_row_once_with_equal_batch_counts(n, world):
    ranks = [
        build_eval_dataloader(Rows(n), collate_fn=default_collater, local_batch_size=2, dp_rank=rank, dp_size=world)
        for rank in range(world)
    ]
    for _ in range(2):  # a second pass starts afresh
        batches = [list(loader) for loader in ranks]
        assert {len(b) for b in batches} == {len(ranks[0])}
        assert sorted(i for b in batches for batch in b for i in ids(batch)) == list(range(n))


def test_bad_sizes_and_empty_data_say_what_to_do():
    with pytest.raises(DataError, match="no rows"):
        loaders(0, 1)
    with pytest.raises(DataError, match="local_batch_size=0"):
        loaders(4, 1, lbs=0)
    with pytest.raises(DataError, match="dp_rank=2"):
        BatchPlan(4, 2, 1, dp_rank=2, dp_size=2)

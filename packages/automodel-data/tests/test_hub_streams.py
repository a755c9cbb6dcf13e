"""Streams of ``datasets``, whose length nobody knows: the same rows as map-style, and resumed to the row."""

from __future__ import annotations

import itertools
import json

import datasets
import pytest

from automodel_data import ChatDataset, ChatIterableDataset, PackedSequence, build_dataloader, default_collater
from automodel_data.errors import DataError
from automodel_data.fingerprint import stream_hash
from automodel_data.stream_sources import HubRows, _open_hub

SIZES = (17, 0, 5, 30)  # rows of the shards


def chat(i: int) -> dict:
    return {"messages": [{"role": "user", "content": "q " * (i % 5)}, {"role": "assistant", "content": f"a {i}"}]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A dataset as it lies on the hub: parquet shards, one of them empty, and no code."""
    path, first = tmp_path_factory.mktemp("hub") / "data", 0
    path.mkdir()
    features = datasets.Dataset.from_list([chat(0)]).features
    for shard, size in enumerate(SIZES):
        rows = [chat(i) for i in range(first, first + size)]
        rows = datasets.Dataset.from_list(rows, features=features) if rows else datasets.Dataset.from_dict(
            {"messages": []}, features=features
        )  # fmt: skip
        rows.to_parquet(str(path / f"train-{shard:05d}-of-00004.parquet"))
        first += size
    return path.parent


def streamed(directory, tokenizer, **options) -> ChatIterableDataset:
    dataset = ChatIterableDataset([{"prompt": "a", "completion": "b"}], tokenizer, **options)
    dataset.source = _open_hub(str(directory), split="train", name=None)
    dataset.name, dataset.num_source_rows = "org/name", None
    return dataset


def loader(dataset, *, world=1, rank=0, workers=0):
    return build_dataloader(
        dataset,
        collate_fn=default_collater,
        global_batch_size=8,
        local_batch_size=2,
        dp_rank=rank,
        dp_size=world,
        seed=3,
        num_workers=workers,
        shuffle_block=20,
    )


def ids(batches) -> list[int]:
    return [i for batch in batches for i in batch["sample_ids"].tolist() if i >= 0]


def test_streamed_equals_map_style(directory, tokenizer):
    with pytest.raises(DataError, match=r"train-00001-of-00004\.parquet is empty: at least one row is needed"):
        ChatDataset(directory, tokenizer)
    files = ChatDataset([str(directory / f"data/train-0000{i}*") for i in (0, 2, 3)], tokenizer)
    dataset = streamed(directory, tokenizer)
    assert len(dataset.source.parts) == 4
    assert stream_hash(dataset) == stream_hash(files[i] for i in range(52))
    given = datasets.load_dataset(str(directory), split="train", streaming=True)
    assert stream_hash(ChatIterableDataset(given, tokenizer)) == stream_hash(dataset)


def test_a_limit_and_worker_processes(directory, tokenizer):
    few = streamed(directory, tokenizer, limit_dataset_samples=20)
    assert [row["sample_id"] for row in few] == list(range(20))
    one, two = (loader(streamed(directory, tokenizer), workers=workers) for workers in (0, 2))
    assert ids(one) == ids(two)
    assert sorted(ids(one)) == list(range(52))


@pytest.mark.parametrize("row", [0, 1, 16, 17, 18, 21, 22, 23, 51, 52])
def test_reading_on_from_any_row(row, directory, tokenizer):
    dataset = streamed(directory, tokenizer)
    pairs = list(dataset.rows())
    position = dataset.start() if row == 0 else json.loads(json.dumps(pairs[row - 1][1]))
    again = list(streamed(directory, tokenizer).rows(position))
    assert again == pairs[row:]


def test_going_on_reads_one_shard_again_and_no_other(directory, tokenizer):
    dataset, read = streamed(directory, tokenizer), []

    class Counted:
        def __init__(self, part, rows):
            self.part, self.rows = part, rows

        def __iter__(self):
            for row in self.rows:
                read.append(self.part)
                yield row

    position = [position for _, position in dataset.rows()][29]
    dataset.source = HubRows([Counted(part, rows) for part, rows in enumerate(dataset.source.parts)], name="org/name")
    assert len(list(dataset.rows(position))) == 22
    assert set(read) == {3}
    assert position == {"row": 30, "part": 3, "part_row": 8}


@pytest.mark.parametrize("stop", [0, 3, 4, 11, 25, 26])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 1)])
def test_a_killed_run_goes_on_twice(stop, before, after, directory, tokenizer):
    whole = loader(streamed(directory, tokenizer))
    epochs = [ids(whole) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(52))] * 3
    state = loader(streamed(directory, tokenizer)).state_dict()
    for world in (before, after):  # the second resume is where state of streams is often lost
        current = loader(streamed(directory, tokenizer), world=world)
        current.load_state_dict(json.loads(json.dumps(state)))
        before_this = 52 * state["epoch"] + state["cursor"]
        taken = len(list(itertools.islice(current, stop // world)))
        state = current.state_dict()
        assert 52 * state["epoch"] + state["cursor"] - before_this in range(8 * (taken * world // 4) - 4, 53)
    ranks = [loader(streamed(directory, tokenizer), world=2, rank=rank) for rank in range(2)]
    for one in ranks:
        one.load_state_dict(state)
    rest = [list(one) for one in ranks]
    windows = [ids([*rest[0][i : i + 2], *rest[1][i : i + 2]]) for i in range(0, len(rest[0]), 2)]
    assert [i for window in windows for i in window] == epochs[state["epoch"]][state["cursor"] :]


def test_packed(directory, tokenizer):
    def packed():
        rows = PackedSequence(streamed(directory, tokenizer), packed_sequence_size=64, strategy="window").pack()
        return loader(rows)

    whole = [ids([batch]) for batch in packed()]
    assert sorted(i for batch in whole for i in batch) == list(range(52))
    stopped = packed()
    list(itertools.islice(stopped, 4))
    again = packed()
    again.load_state_dict(stopped.state_dict())
    assert whole[:4] + [ids([batch]) for batch in again] == whole


def test_a_stream_that_breaks_off_says_where(directory, tokenizer):
    class Broken:
        def __iter__(self):
            yield chat(1)
            raise OSError("connection reset")

    dataset = streamed(directory, tokenizer)
    dataset.source = HubRows([Broken()], name="org/name")
    with pytest.raises(DataError, match=r"org/name breaks off after row 1 of part 1 of 1: connection reset\. Check"):
        list(dataset)


def test_an_id_that_is_nowhere(tokenizer):
    with pytest.raises(DataError, match="no file here, and the hub has no such dataset"):
        ChatIterableDataset("no-such-org/no-such-data", tokenizer)

"""Streams keep the promises of the map-style loader: same windows on any world, each row once, exact resume."""

from __future__ import annotations

import itertools
import json

import pytest

from automodel_data import (
    ChatDataset,
    ChatIterableDataset,
    ColumnMappedTextInstructionIterableDataset,
    PackedSequence,
    build_dataloader,
)
from automodel_data.collate import default_collater
from automodel_data.errors import DataError
from automodel_data.fingerprint import stream_hash


@pytest.fixture
def path(tmp_path):
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a {i}"}]})
        for i in range(61)
    ]
    lines[5] = lines[40] = "{broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "a.jsonl")


GOOD = [i for i in range(61) if i not in (5, 40)]


def loaders(path, tokenizer, world, *, lbs=2, **options):
    return [
        build_dataloader(
            ChatIterableDataset(path, tokenizer),
            collate_fn=default_collater,
            global_batch_size=8,
            local_batch_size=lbs,
            dp_rank=rank,
            dp_size=world,
            seed=3,
            shuffle_block=20,
            **options,
        )
        for rank in range(world)
    ]


def ids(batch) -> list[int]:
    return [i for i in batch["sample_ids"].tolist() if i >= 0]


def windows(ranks) -> list[list[int]]:
    per_rank = [list(loader) for loader in ranks]
    assert len({len(batches) for batches in per_rank}) == 1
    size = 8 // (len(ranks) * ranks[0].plan.local_batch_size)
    starts = range(0, len(per_rank[0]), size)
    return [[i for batches in per_rank for batch in batches[s : s + size] for i in ids(batch)] for s in starts]


@pytest.mark.parametrize("world", [2, 4])
def test_windows_do_not_depend_on_the_world(path, tokenizer, world):
    alone = windows(loaders(path, tokenizer, 1))
    assert sorted(i for window in alone for i in window) == GOOD
    assert alone[0] != sorted(alone[0])
    ranks = loaders(path, tokenizer, world)
    assert windows(ranks) == alone
    second = windows(ranks)
    assert sorted(i for window in second for i in window) == GOOD
    assert second != alone


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9, 10, 27, 28])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.more)])
def test_resume_by_seeking(path, tokenizer, stop, before, after, workers):
    reference = loaders(path, tokenizer, 1)
    epochs = [windows(reference), windows(reference)]
    stopped = loaders(path, tokenizer, before, num_workers=workers)[0]
    taken = len(list(itertools.islice(stopped, stop // before)))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = loaders(path, tokenizer, after)
    for loader in resumed:
        loader.load_state_dict(state)
    done = taken // (4 // before)
    assert (state["epoch"], state["cursor"]) == (0, done * 8)
    assert epochs[0][:done] + windows(resumed) == epochs[0]
    assert windows(resumed) == epochs[1]


def test_workers_do_not_change_the_stream(path, tokenizer, monkeypatch):
    monkeypatch.setattr("automodel_data.streaming._CHUNK", 7)  # several chunks for each worker
    assert windows(loaders(path, tokenizer, 1, num_workers=2)) == windows(loaders(path, tokenizer, 1))
    one, two = ChatIterableDataset(path, tokenizer), ChatIterableDataset(path, tokenizer)
    assert stream_hash(row for row, _ in one.rows()) == stream_hash(row for row, _ in two.rows(num_workers=2))
    assert one.report == two.report


def test_a_bad_row_fails_the_same_with_workers(path, tokenizer):
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"^\S*a\.jsonl:6: broken JSON.*on_bad='skip'"):
            list(ChatIterableDataset(path, tokenizer, on_bad="fail").rows(num_workers=workers))


def test_too_many_bad_rows_end_a_stream_once_it_can_be_judged(tmp_path, tokenizer, caplog):
    good = json.dumps({"prompt": "q", "completion": "a"})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([good] * 900 + ["{broken"] * 50 + [good] * 300))
    with pytest.raises(DataError, match=r"50 of 10\d\d rows of .* cannot be used \(.*a\.jsonl:901: broken JSON"):
        list(ChatIterableDataset(str(path), tokenizer))
    assert len(list(ChatIterableDataset(str(path), tokenizer, max_bad_fraction=0.05))) == 1200
    assert "50 of 1250 rows left out" in caplog.text


def test_the_end_of_an_epoch_is_the_start_of_the_next(path, tokenizer):
    loader = loaders(path, tokenizer, 1)[0]
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["cursor"]) == (1, 0)


def test_unshuffled_stream_gives_the_batches_of_the_map_style_dataset(path, tokenizer):
    mapped = ChatDataset(path, tokenizer, max_bad_fraction=0.1)
    options = {"collate_fn": default_collater, "global_batch_size": 8, "local_batch_size": 2, "shuffle": False}
    streamed = list(build_dataloader(ChatIterableDataset(path, tokenizer), **options))
    for one, other in zip(streamed, build_dataloader(mapped, **options), strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert one["labels"].tolist() == other["labels"].tolist()


def test_column_mapped_stream_equals_its_map_style_twin(tmp_path, tokenizer):
    from automodel_data import ColumnMappedTextInstructionDataset

    rows = [{"q": f"What is {i}?", "a": i} for i in range(20)]
    mapping = {"question": "q", "answer": "a"}
    mapped = ColumnMappedTextInstructionDataset(rows, mapping, tokenizer)
    streamed = ColumnMappedTextInstructionIterableDataset(rows, mapping, tokenizer)
    assert stream_hash(streamed) == stream_hash(mapped[i] for i in range(20))


@pytest.mark.parametrize("world", [1, 2])
def test_a_packed_stream_has_every_row_once_and_resumes(path, tokenizer, world):
    def ranks(num):
        packed = PackedSequence(ChatIterableDataset(path, tokenizer), packed_sequence_size=64, strategy="window").pack()
        options = {"collate_fn": default_collater, "global_batch_size": 4, "local_batch_size": 2, "shuffle_block": 25}
        return [build_dataloader(packed, dp_rank=rank, dp_size=num, **options) for rank in range(num)]

    def steps(loaders):
        per_rank = [list(loader) for loader in loaders]
        size = 2 // len(loaders)
        starts = range(0, len(per_rank[0]), size)
        return [sorted(i for b in per_rank for batch in b[s : s + size] for i in ids(batch)) for s in starts]

    alone = steps(ranks(1))
    assert sorted(i for step in alone for i in step) == GOOD
    assert steps(ranks(world)) == alone
    stopped = ranks(world)[0]
    batches = list(itertools.islice(stopped, 2))
    assert "attention_mask" not in batches[0]
    resumed = ranks(1)
    resumed[0].load_state_dict(stopped.state_dict())
    done = 2 // (2 // world)
    assert alone[:done] + steps(resumed) == alone


def test_the_longest_rows_make_a_batch_and_the_position_stays(tmp_path, tokenizer):
    rows = [{"prompt": "q " * (i % 9), "completion": "a"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for pack in (False, True):
        dataset = ChatIterableDataset(str(tmp_path / "a.jsonl"), tokenizer)
        lengths = [len(row["input_ids"]) for row in dataset]
        dataset = PackedSequence(dataset, packed_sequence_size=64, strategy="window").pack() if pack else dataset
        loader = build_dataloader(dataset, collate_fn=default_collater, global_batch_size=4, local_batch_size=2)
        before = loader.state_dict()
        batch = loader.longest_micro_batch()
        assert batch["input_ids"].shape == (2, 64 if pack else max(lengths))
        assert loader.state_dict() == before
        assert sorted(i for b in loader for i in ids(b)) == list(range(40))


def test_misuse_says_what_to_do(path, tokenizer, tmp_path):
    state = loaders(path, tokenizer, 1)[0].state_dict()
    with pytest.raises(DataError, match="shuffle_block=20 but"):
        build_dataloader(
            ChatIterableDataset(path, tokenizer),
            collate_fn=default_collater,
            global_batch_size=8,
            local_batch_size=2,
            seed=3,
        ).load_state_dict(state)
    with pytest.raises(DataError, match="need the whole dataset"):
        PackedSequence(ChatIterableDataset(path, tokenizer), split_across_pack=True).pack()
    with pytest.raises(DataError, match="longer than packed_sequence_size=4"):
        list(
            build_dataloader(
                PackedSequence(ChatIterableDataset(path, tokenizer), packed_sequence_size=4).pack(),
                collate_fn=default_collater,
                global_batch_size=2,
                local_batch_size=2,
            )
        )
    (tmp_path / "bad.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(DataError, match=r"no row of .* can be trained on"):
        list(loaders(str(tmp_path / "bad.jsonl"), tokenizer, 1)[0])

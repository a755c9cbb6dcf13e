"""A process that trains is killed again and again, and goes on with another number of ranks and workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from automodel_data import ChatIterableDataset, MixedStream, PackedSequence, build_dataloader, default_collater
from automodel_data.llm.mock import build_unpacked_dataset

pytestmark = pytest.mark.more  # dozens of processes, with workers of their own

GLOBAL_BATCH, EPOCHS = 8, 3
RUNS = [(1, 0), (2, 2), (4, 0), (1, 2), (2, 0), (4, 2), (1, 0)]  # ranks and workers, one kill between two of them


def rows_of(kind: str, tokenizer):
    if kind == "map-style":
        return build_unpacked_dataset(num_sentences=61)
    if kind == "packed":
        return PackedSequence(build_unpacked_dataset(num_sentences=200), packed_sequence_size=64).pack()
    chats = {
        name: [{"prompt": "q", "completion": f"{name} {i}"} for i in range(size)]
        for name, size in {"a": 50, "b": 11}.items()
    }
    streams = {name: ChatIterableDataset(rows, tokenizer) for name, rows in chats.items()}
    mixed = MixedStream(streams, {"a": 3, "b": 1}, num_samples=61)
    return mixed if kind == "mixed stream" else PackedSequence(mixed, packed_sequence_size=48).pack()


def train(directory: Path, kind: str, tokenizer, world: int, workers: int) -> None:
    """All ranks of a run in one process, in step: each window's rows are logged, then the position is replaced."""
    dataset = rows_of(kind, tokenizer)
    streamed = not hasattr(dataset, "__len__")
    sizes = {"global_batch_size": GLOBAL_BATCH, "local_batch_size": 2, "seed": 5, "num_workers": workers}
    options = {**sizes, **({"shuffle_block": 20} if streamed else {})}
    ranks = [
        build_dataloader(dataset, collate_fn=default_collater, dp_rank=rank, dp_size=world, **options)
        for rank in range(world)
    ]
    state_file = directory / "state.json"
    if state_file.exists():
        for rank in ranks:
            rank.load_state_dict(json.loads(state_file.read_text()))
    while ranks[0].state_dict()["epoch"] < EPOCHS:
        window: list[list[int]] = [[] for _ in ranks]
        at = {key: ranks[0].state_dict()[key] for key in ("epoch", "cursor")}
        for batches in zip(*ranks, strict=True):
            for rank, batch in enumerate(batches):
                window[rank] += [i for i in batch["sample_ids"].tolist() if i >= 0]
            states = [rank.state_dict() for rank in ranks]
            if (states[0]["epoch"], states[0]["cursor"]) == (at["epoch"], at["cursor"]):
                continue  # inside a window
            assert all(state == states[0] for state in states)
            with (directory / "log.jsonl").open("a") as log:
                log.write(json.dumps({**at, "ids": [i for rank in window for i in rank]}) + "\n")
            (directory / "state.tmp").write_text(json.dumps(states[0]))
            os.replace(directory / "state.tmp", state_file)
            window, at = [[] for _ in ranks], {key: states[0][key] for key in ("epoch", "cursor")}
            time.sleep(0.01)  # as if it trained
    (directory / "done").touch()


def logged(directory: Path) -> list[dict]:
    file = directory / "log.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def run(directory: Path, kind: str, tokenizer, world: int, workers: int, *, kill_after: int | None) -> None:
    context = multiprocessing.get_context("fork")
    before = len(logged(directory))
    child = context.Process(target=train, args=(directory, kind, tokenizer, world, workers))
    child.start()
    while kill_after is not None and child.is_alive() and len(logged(directory)) - before < kill_after:
        time.sleep(0.002)
    if kill_after is not None:
        time.sleep(0.003 * (world + workers))  # not always at the same place of a window
        os.kill(child.pid, signal.SIGKILL)
    child.join(300)
    assert kill_after is not None or child.exitcode == 0


@pytest.mark.parametrize("kind", ["map-style", "packed", "mixed stream", "packed stream"])
def test_killed_six_times(kind, tokenizer, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for directory in (whole, parts):
        directory.mkdir()
    run(whole, kind, tokenizer, 1, 0, kill_after=None)
    expected = logged(whole)
    assert len({(entry["epoch"], entry["cursor"]) for entry in expected}) == len(expected) >= 3 * EPOCHS
    for (world, workers), kill_after in zip(RUNS, [1, 0, 2, 3, 1, 2, None], strict=True):
        run(parts, kind, tokenizer, world, workers, kill_after=kill_after)
    assert (parts / "done").exists()
    found: dict[tuple[int, int], list[int]] = {}
    for entry in logged(parts):  # a window that was logged but not saved comes again, and is the same
        assert found.setdefault((entry["epoch"], entry["cursor"]), entry["ids"]) == entry["ids"]
    assert found == {(entry["epoch"], entry["cursor"]): entry["ids"] for entry in expected}
    for epoch in range(EPOCHS):
        ids = [i for (e, _), window in found.items() if e == epoch for i in window]
        assert len(ids) == len(set(ids)) == (200 if kind == "packed" else 61)

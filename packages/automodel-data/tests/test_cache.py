"""One builder, whole entries, and names that follow everything a token depends on."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from automodel_data import ChatDataset
from automodel_data.cache import cache_root, entries, published, remove
from automodel_data.errors import DataError


def _slow_build(directory: Path) -> None:
    time.sleep(0.3)
    (directory / "built").write_text(str(os.getpid()))


def _build_in_child(queue) -> None:
    calls = []

    def build(directory: Path) -> None:
        calls.append(1)
        _slow_build(directory)

    entry = published("shared", build)
    queue.put((len(calls), (entry / "built").read_text()))


def test_of_several_processes_one_builds_and_all_read_the_same():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_build_in_child, args=(queue,)) for _ in range(3)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sum(calls for calls, _ in results) == 1
    assert len({built for _, built in results}) == 1


def test_a_failed_build_leaves_no_entry_and_the_next_one_succeeds():
    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        published("entry", fail)
    assert entries() == []
    assert not [p for p in cache_root().glob(".entry.*") if p.is_dir()]
    assert (published("entry", _slow_build) / "built").is_file()


def test_a_killed_builder_blocks_nobody():
    context = multiprocessing.get_context("fork")
    child = context.Process(target=published, args=("entry", lambda directory: time.sleep(600)))
    child.start()
    while not list(cache_root().glob(".entry.*")):
        time.sleep(0.01)
    child.kill()
    child.join()
    assert (published("entry", _slow_build) / "built").is_file()


def test_an_unwritable_cache_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot be written.*AUTOMODEL_DATA_CACHE.*cache=False"):
        published("entry", _slow_build)


def test_listing_and_removing():
    published("aa-1", _slow_build)
    published("ab-2", _slow_build)
    assert {entry.key for entry in entries()} == {"aa-1", "ab-2"}
    assert entries()[0].num_bytes > 0
    assert remove("aa") == 1
    with pytest.raises(DataError, match="no entry 'aa'"):
        remove("aa")
    with pytest.raises(DataError):
        remove("")
    assert [entry.key for entry in entries()] == ["ab-2"]


def write(path: Path, answer: str) -> str:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]}
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_data_tokenizer_template_and_options_each_name_another_entry(tmp_path, make_tokenizer):
    path = write(tmp_path / "a.jsonl", "one")
    tokenizer = make_tokenizer("chatml")

    def num_entries() -> int:
        return len(entries())

    ChatDataset(path, tokenizer)
    ChatDataset(path, tokenizer)
    assert num_entries() == 1
    ChatDataset(path, tokenizer, mask="last_turn")
    ChatDataset(path, tokenizer, seq_length=64)
    ChatDataset(path, tokenizer, chat_template=tokenizer.chat_template + " ")
    ChatDataset(path, tokenizer, limit_dataset_samples=1)
    assert num_entries() == 5
    ChatDataset(path, make_tokenizer("phi4"), chat_template=tokenizer.chat_template)
    assert num_entries() == 6
    stat = os.stat(path)
    write(tmp_path / "a.jsonl", "two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time, other bytes
    row = ChatDataset(path, tokenizer)[0]
    assert "two" in tokenizer.decode(row["input_ids"])
    ChatDataset(path, tokenizer, cache=False)
    assert num_entries() == 7

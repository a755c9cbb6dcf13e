"""Rows behind URLs: the same as from a file, fetched once, fetched again when they change, no secret in a message."""

from __future__ import annotations

import json
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from automodel_data import ChatDataset
from automodel_data.cache import cache_root, entries
from automodel_data.errors import DataError
from automodel_data.sources import open_source

ROWS = [{"text": f"row {i}", "n": i} for i in range(7)]


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


@pytest.fixture
def memory():
    """A store of bytes in this process, with the interface of all others."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)
    filesystem.store.clear()


def test_a_file_a_glob_a_directory_and_a_list(memory):
    memory.pipe({"/b/train-0.jsonl": lines(ROWS[:4]), "/b/sub/train-1.jsonl": lines(ROWS[4:])})
    memory.pipe({"/b/test.jsonl": lines(ROWS[:1]), "/b/notes.md": b"no data"})
    for given in (
        ["memory://b/train-0.jsonl", "memory://b/sub/train-1.jsonl"],
        ["memory://b/train-*.jsonl", "memory://b/sub/*.jsonl"],
    ):
        assert rows_of(open_source(given)) == ROWS
    assert sorted(row["n"] for row in rows_of(open_source("memory://b"))) == list(range(7))
    assert rows_of(open_source("memory://b", split="test")) == ROWS[:1]
    source = open_source("memory://b/train-0.jsonl")
    assert source.place(2) == ("memory:///b/train-0.jsonl", 3)


def test_compressed_rows_and_tables(memory, tmp_path):
    import gzip

    import datasets

    memory.pipe("/a.jsonl.gz", gzip.compress(lines()))
    assert rows_of(open_source("memory://a.jsonl.gz")) == ROWS
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    memory.put(str(tmp_path / "a.parquet"), "/a.parquet")
    assert rows_of(open_source("memory://a.parquet")) == ROWS


def test_a_file_is_fetched_once_and_again_when_it_changes(memory, monkeypatch):
    memory.pipe("/a.jsonl", lines())
    fetched = []
    get_file = type(memory).get_file
    monkeypatch.setattr(type(memory), "get_file", lambda self, a, b: (fetched.append(a), get_file(self, a, b)))
    for _ in range(3):
        open_source("memory://a.jsonl")
    assert len(fetched) == 1
    memory.pipe("/a.jsonl", lines([{**row, "n": 9 - row["n"]} for row in ROWS]))  # the same size
    assert open_source("memory://a.jsonl")[0]["n"] == 9
    assert len(fetched) == 2


def test_a_dataset_from_a_url_equals_the_one_from_its_file(memory, tmp_path, tokenizer):
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": str(i)}]} for i in range(9)
    ]
    memory.pipe("/chat.jsonl", lines(chats))
    (tmp_path / "chat.jsonl").write_bytes(lines(chats))
    remote, local = ChatDataset("memory://chat.jsonl", tokenizer), ChatDataset(tmp_path / "chat.jsonl", tokenizer)
    assert [remote[i] for i in range(9)] == [local[i] for i in range(9)]
    assert len([e for e in entries() if e.key.startswith("tokens-")]) == 1  # the same bytes are the same entry


def test_bad_rows_name_the_url(memory, tokenizer):
    memory.pipe("/chat.jsonl", b"{broken\n")
    with pytest.raises(DataError, match=r"memory:///chat\.jsonl:1: broken JSON"):
        ChatDataset("memory://chat.jsonl", tokenizer)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nope.jsonl", r"memory://nope\.jsonl cannot be read: FileNotFoundError.*Check the address"),
        ("memory://nope/*.jsonl", r"nothing is found at memory://nope/\*\.jsonl"),
        ("nosuch://a.jsonl", r"nosuch://a\.jsonl cannot be read: ValueError: Protocol not known"),
        ("memory://", "nothing is found at memory://"),
    ],
)
def test_what_is_not_there_says_so(memory, url, message):
    with pytest.raises(DataError, match=message):
        open_source(url)


class Files(BaseHTTPRequestHandler):
    """Files of ``server.files``; with ``server.versions``, with a modification time each."""

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        body = self.server.files.get(unquote(urlsplit(self.path).path))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.server.versions:
            self.send_header("Last-Modified", formatdate(self.server.versions, usegmt=True))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pytest.importorskip("aiohttp", reason="fsspec reads https:// through aiohttp, which datasets brings along")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    httpd.files, httpd.requests, httpd.versions = {}, [], 0
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()


@pytest.mark.parametrize("has_version", [True, False])
def test_a_web_server_with_and_without_modification_times(server, has_version):
    server.files["/d/a.jsonl"] = lines()
    server.versions = 1_700_000_000 * has_version
    for _ in range(2):
        assert rows_of(open_source(f"{server.url}/d/a.jsonl")) == ROWS
    downloads = [method for method, _ in server.requests if method == "GET"]
    assert len(downloads) == (1 if has_version else 2)  # without a version, only the bytes tell
    server.files["/d/a.jsonl"] = lines([*ROWS[:6], {"text": "row X", "n": 6}])
    server.versions = 1_700_000_009 * has_version
    assert open_source(f"{server.url}/d/a.jsonl")[6]["text"] == "row X"
    assert not list(cache_root().glob(".fetch-*"))


def test_signatures_and_passwords_stay_out_of_names_and_messages(server):
    server.files["/a.jsonl"] = b"{broken\n" + lines()
    url = f"{server.url.replace('://', '://me:hunter2@')}/a.jsonl?X-Signature=s3cret"
    source = open_source(url)
    assert source.place(0) == (f"{server.url}/a.jsonl", 1)
    assert source[1] == ROWS[0]
    with pytest.raises(DataError) as caught:
        open_source(url.replace("a.jsonl", "b.jsonl"))
    text = str(caught.value)
    assert "b.jsonl cannot be read" in text
    assert not any(secret in text for secret in ("hunter2", "s3cret", "me:"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not any("s3cret" in str(p) for p in Path(cache_root()).rglob("*"))


def test_a_server_that_does_not_answer_is_a_data_error(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: .*Check the address and the credentials"):
        open_source(f"{server.url}/a.jsonl")

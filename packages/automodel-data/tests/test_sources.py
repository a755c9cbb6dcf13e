"""Every kind of file gives the same rows, and every broken one says what and where."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import datasets
import pytest

from automodel_data.errors import BadRow, DataError
from automodel_data.sources import open_source, source_fingerprint

ROWS = [{"text": f"row {i} Größe 🙂", "n": i} for i in range(7)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def write(path, data: bytes | str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.xz", "jsonl.zst", "json", "csv", "parquet", "arrow"]
)
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = tmp_path / f"data.{kind}"
    packers = {"jsonl.gz": gzip.compress, "jsonl.bz2": bz2.compress, "jsonl.xz": lzma.compress}
    if kind == "jsonl.zst":
        packers[kind] = pytest.importorskip("zstandard").compress
    if kind == "jsonl":
        write(path, LINES)
    elif kind in packers:
        write(path, packers[kind](LINES.encode()))
    elif kind == "json":
        write(path, json.dumps(ROWS))
    elif kind == "arrow":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow"))
    else:
        table = datasets.Dataset.from_list(ROWS)
        (table.to_csv if kind == "csv" else table.to_parquet)(str(path))
    assert rows_of(open_source(path)) == ROWS
    assert rows_of(open_source(str(path))) == ROWS
    assert source_fingerprint(open_source(path))


def test_directories_globs_lists_and_urls(tmp_path):
    first, second = LINES.splitlines(keepends=True)[:4], LINES.splitlines(keepends=True)[4:]
    write(tmp_path / "d" / "train-0.jsonl", "".join(first))
    write(tmp_path / "d" / "train-1.jsonl", "".join(second))
    write(tmp_path / "d" / "test.jsonl", first[0])
    for given in (
        tmp_path / "d",
        str(tmp_path / "d" / "train-*.jsonl"),
        [tmp_path / "d" / "train-0.jsonl", tmp_path / "d" / "train-1.jsonl"],
        f"file://{tmp_path}/d/train-*.jsonl",
    ):
        source = open_source(given)
        assert rows_of(source) == ROWS
        assert source.place(5)[0].endswith("train-1.jsonl")
        assert source.place(5)[1] == 2
    assert len(open_source(tmp_path / "d", split="test")) == 1
    with pytest.raises(DataError, match="no data file for split 'validation'"):
        open_source(tmp_path / "d", split="validation")


def test_saved_datasets_and_rows_in_memory(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert rows_of(open_source(tmp_path / "saved")) == ROWS
    assert rows_of(open_source(ROWS)) == ROWS
    assert rows_of(open_source(datasets.Dataset.from_list(ROWS))) == ROWS


def test_blank_lines_do_not_count_and_line_numbers_do(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", '\n{"a": 1}\r\n\n   \n{"a": 2}'))
    assert rows_of(source) == [{"a": 1}, {"a": 2}]
    assert [source.place(i)[1] for i in range(2)] == [2, 5]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": 1', "broken JSON"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b"[1, 2]", "the row is list, not an object"),
        (b"null", "the row is NoneType"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"a": NaN', "broken JSON"),
    ],
)
def test_a_broken_line_is_one_bad_row(line, why, tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n'))
    assert (source[0], source[2]) == ({"a": 1}, {"a": 3})
    with pytest.raises(BadRow, match=why):
        source[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty: at least one row"),
        ("a.jsonl", b"\n \n", "is empty: at least one row"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"text,n\n", "is empty: at least one row"),
        ("a.csv", b"", "cannot be read as csv: No columns to parse from file"),
        ("a.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot be read as csv: .*Expected 2 fields in line 3, saw 4"),
        ("a.csv", b"a,b\n\xff,2\n", "cannot be read as csv: .*codec can't decode"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.arrow", b"", "cannot be read as arrow"),
        ("a.arrow", b"ARROW1 but not really", "cannot be read as arrow"),
        ("a.json", b"[1,", "is not valid JSON"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.txt", b" \n", "is empty"),
        ("a.jsonl.gz", b"not gzip", "cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be decompressed"),
        ("a.parquet", b"PAR1 but not really", "cannot be read as parquet"),
        ("a.xlsx", b"x", "unknown kind. Known: .jsonl"),
    ],
)
def test_broken_files_say_what_is_wrong(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / name, content))


@pytest.mark.parametrize("given", ["missing.jsonl", "missing/*.jsonl", "file:///missing/x.jsonl"])
def test_missing_files_say_so(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"nothing is found at|cannot be read"):
        open_source(given)


def test_a_hub_id_that_cannot_be_reached_says_so():
    with pytest.raises(DataError, match="no file here, and the hub has no such dataset"):
        open_source("no-such-org/no-such-data@main")


def test_a_split_is_a_word_in_a_path_and_train_takes_no_other_split(tmp_path):
    for name, n in {"train-0": 0, "constraints": 1, "test": 2, "sub/train/a": 3, "my_validation": 4}.items():
        write(tmp_path / f"{name}.jsonl", json.dumps({"n": n}))
    assert [row["n"] for row in rows_of(open_source(tmp_path))] == [3, 0]
    assert [row["n"] for row in rows_of(open_source(tmp_path, split="validation"))] == [4]
    (tmp_path / "train-0.jsonl").unlink()
    (tmp_path / "sub/train/a.jsonl").unlink()
    assert [row["n"] for row in rows_of(open_source(tmp_path))] == [1]
    with pytest.raises(DataError, match=r"holds no data file for split 'dev'\. .*Found: constraints\.jsonl"):
        open_source(tmp_path, split="dev")


def test_fingerprints_follow_the_bytes(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    before = source_fingerprint(open_source(path))
    copy = write(tmp_path / "b.jsonl", LINES)
    assert source_fingerprint(open_source(copy)) == before
    write(path, LINES.replace("row 3", "row 4"))
    assert source_fingerprint(open_source(path)) != before

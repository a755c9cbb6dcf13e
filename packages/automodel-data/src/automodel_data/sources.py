"""Where raw rows come from: files of any common kind, directories, globs, URLs, the hub, or rows already in memory.

A source has ``len``, ``source[i] -> dict`` (raising `BadRow`), ``place(i) -> (file, line)`` for error messages, and
``fingerprint()``, which names its content, or None where that cannot be known.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Any

from automodel_data.cache import cache_root, published
from automodel_data.errors import BadRow, DataError
from automodel_data.jsonlines import JsonLines, parse_json_row
from automodel_data.remote import fetch, is_url, public

_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TABLES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_OTHER_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_SUFFIXES = (".jsonl", ".ndjson", ".json", *_TABLES, ".txt", ".tar")


def open_source(path_or_dataset_id: Any, *, split: str = "train", name: str | None = None) -> Any:
    """Random access to raw rows.

    Args:
        path_or_dataset_id: a file (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet``, ``.arrow``, ``.txt``,
            ``.tar`` in WebDataset form; all but the tables also as ``.gz``, ``.bz2``, ``.xz`` or ``.zst``), a directory
            or glob of such files, a URL, URL glob or URL of a directory that fsspec knows (`remote.fetch`), a hub id
            (``org/name`` or ``org/name@revision``), a list of these, or a ``datasets.Dataset`` or list of dicts.
        split: of a hub dataset or a directory; there it selects the files whose name holds it, and ``train`` where none
            does takes those that name no other split.
        name: configuration of a hub dataset.

    Raises: DataError: nothing is found there, or it is empty.
    """
    given = path_or_dataset_id
    if isinstance(given, (list, tuple)) and given and all(isinstance(part, (str, Path)) for part in given):
        return _joined([open_source(part, split=split, name=name) for part in given])
    if not isinstance(given, (str, Path)):
        return LoadedRows(given, name=type(given).__name__)
    text = str(given)
    if is_url(text):
        return _open_url(text, split=split)
    path = Path(text)
    if path.is_dir():
        return _open_directory(path, split=split)
    if has_magic(text) and not path.exists():
        return _joined([open_file(Path(found)) for found in sorted(glob(text, recursive=True))] or _nothing(text))
    if is_hub_id(given):
        return LoadedRows(_load_hub(text, split=split, name=name), name=text)
    return open_file(path)


def is_hub_id(given: Any) -> bool:
    """Whether `open_source` would look for this on the hub: text that names no file, directory, glob or URL."""
    if not isinstance(given, (str, Path)) or is_url(str(given)):
        return False
    path = Path(given)
    return not path.exists() and not has_magic(str(given)) and _kind(path) not in _SUFFIXES


def open_file(path: Path, *, name: str | None = None) -> Any:
    """Rows of one local file; ``name`` is what errors call it."""
    shown, kind = name or str(path), _kind(path)
    if not path.is_file():
        _nothing(shown)
    plain = path if path.suffix not in (*_COMPRESSED, ".zst") else _decompressed(path)
    if kind in (".jsonl", ".ndjson", ".json"):
        if kind == ".json" and _first_byte(plain) == b"[":
            return LoadedRows(_json_array(plain, shown), name=shown, path=plain)
        return JsonLines(plain, name=shown)
    if kind == ".txt":
        return TextDocuments(plain, name=shown)
    if kind == ".tar":
        from automodel_data.webdataset import TarRows

        return TarRows(plain, name=shown)
    if kind in _TABLES:
        return LoadedRows(_load_table(plain, kind, shown), name=shown, path=plain)
    raise DataError(f"{shown} is of an unknown kind. Known: {', '.join(_SUFFIXES)}. Rename or convert it.")


class LoadedRows:
    """Rows of a ``datasets.Dataset`` or any sequence of dicts."""

    def __init__(self, rows: Any, *, name: str, path: Path | None = None) -> None:
        self.rows, self.name, self._path = rows, name, path
        if not len(rows):
            raise _empty(name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if not isinstance(row, dict):
            raise BadRow(f"the row is {type(row).__name__}, not an object")
        return row

    def place(self, index: int) -> tuple[str, int]:
        return self.name, index + 1

    def line(self, index: int) -> int:
        """1-based row number."""
        return index + 1

    def fingerprint(self) -> str | None:
        if self._path is not None:
            return file_digest(self._path)
        return getattr(self.rows, "_fingerprint", None)


class TextDocuments:
    """Documents of a plain-text file as rows with a ``text`` column; blank lines part them if ``split_documents``."""

    def __init__(self, path: str | Path, *, name: str | None = None, split_documents: bool = True) -> None:
        self.name = name or str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}. Give an existing text file.") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name} is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
            ) from None
        self._documents = [d for d in (text.split("\n\n") if split_documents else [text]) if d.strip()]
        if not self._documents:
            raise DataError(f"{self.name} is empty: it holds no text. Give a file with at least one document.")

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self._documents[index]}

    def place(self, index: int) -> tuple[str, int]:
        """File and 1-based number of the document."""
        return self.name, index + 1

    def line(self, index: int) -> int:
        """1-based document number."""
        return index + 1

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self._documents).encode()).hexdigest()


class JoinedRows:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.name = parts[0].name if len(parts) == 1 else f"{parts[0].name} and {len(parts) - 1} more"
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Any, int]:
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self._locate(index)
        return part[row]

    def place(self, index: int) -> tuple[str, int]:
        part, row = self._locate(index)
        return part.place(row)

    def line(self, index: int) -> int:
        """1-based line or row number in its own file."""
        return self.place(index)[1]

    def fingerprint(self) -> str | None:
        prints = [source_fingerprint(part) for part in self.parts]
        return None if None in prints else hashlib.sha256(json.dumps(prints).encode()).hexdigest()


def source_fingerprint(source: Any) -> str | None:
    """A name for the content of a source: the bytes of a file, else what the source says of itself."""
    if isinstance(source, JsonLines):
        return file_digest(source.path)
    return source.fingerprint()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_with_errors(source: Any, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Any]]:
    """``(index, row)`` over a source, with the `BadRow` in place of a row that cannot be read."""
    for i in range(start, len(source) if stop is None else min(stop, len(source))):
        try:
            yield i, source[i]
        except BadRow as error:
            yield i, error


def _empty(shown: str) -> DataError:
    return DataError(f"{shown} is empty: at least one row is needed. Check the file or the split, or leave it out.")


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in (*_COMPRESSED, ".zst") else path.suffix


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _nothing(shown: str) -> Any:
    raise DataError(
        f"nothing is found at {shown}. Give an existing file, directory, glob or URL, or a hub id such as org/name."
    )


def _open_directory(path: Path, *, split: str) -> Any:
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        from datasets import load_from_disk

        return LoadedRows(load_from_disk(str(path)), name=str(path))
    files = sorted(p for p in path.rglob("*") if p.is_file())
    chosen = [files[i] for i in _of_split([p.relative_to(path) for p in files], split)]
    if not chosen:
        raise DataError(
            f"{path} holds no data file for split {split!r}. Files of these kinds are read: {', '.join(_SUFFIXES)}; "
            "name them after their split, or give their path. Found: "
            f"{', '.join(p.name for p in files[:5]) or 'none'}."
        )
    return _joined([open_file(p) for p in chosen])


def _of_split(paths: list[Path], split: str) -> list[int]:
    """Which of the paths, relative to their directory, are data files of a split."""
    files = [i for i, path in enumerate(paths) if _kind(path) in _SUFFIXES and path.name[0] != "."]
    named = [i for i in files if _names(paths[i], split)]
    if named or split != "train":
        return named
    return [i for i in files if not any(_names(paths[i], other) for other in _OTHER_SPLITS)]


def _names(path: Path, split: str) -> bool:
    """Whether a path holds a split's name as a word: ``train-0.jsonl`` and ``train/a.csv``, not ``constraints.csv``."""
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", str(path).lower()) is not None


def _open_url(url: str, *, split: str) -> Any:
    found = fetch(url, choose=lambda paths: _of_split([*map(Path, paths)], split))
    return _joined([open_file(path, name=shown) for shown, path in found] or _nothing(public(url)))


def _decompressed(path: Path) -> Path:
    """The plain file, unpacked once into the cache."""
    opener: Callable[..., Any] = _COMPRESSED.get(path.suffix) or _open_zstd

    def unpack(directory: Path) -> None:
        try:
            with opener(path) as packed, (directory / "data").open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{path} cannot be decompressed: {error}. The file is damaged or cut short.") from None

    return published(f"file-{file_digest(path)[:32]}", unpack) / "data"


def _open_zstd(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path} needs the zstandard package: pip install 'automodel-data[zstd]'.") from None
    return zstandard.open(path, "rb")


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).lstrip()[:1]


def _json_array(path: Path, shown: str) -> list[Any]:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{shown} is not valid JSON: {error}. Repair it, or write one object per line (.jsonl)."
        ) from None


def _load_table(path: Path, kind: str, shown: str) -> Any:
    from datasets import Dataset

    directory = str(cache_root() / "tables")
    readers: dict[str, Callable[[], Any]] = {
        "csv": lambda: Dataset.from_csv(str(path), cache_dir=directory, sep="\t" if kind == ".tsv" else ","),
        "parquet": lambda: Dataset.from_parquet(str(path), cache_dir=directory),
        "arrow": lambda: Dataset.from_file(str(path)),
    }
    try:
        return readers[_TABLES[kind]]()
    except read_errors() as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # how datasets says that there are no rows
            raise _empty(shown) from None
        raise DataError(f"{shown} cannot be read as {_TABLES[kind]}: {cause}. Check that it is whole.") from error


def read_errors() -> tuple[type[Exception], ...]:
    """What ``datasets`` raises where it cannot read; its own errors are of no built-in kind."""
    from datasets.exceptions import DatasetsError

    return DatasetsError, OSError, ValueError, ArithmeticError, RuntimeError, LookupError


def _load_hub(dataset_id: str, *, split: str, name: str | None) -> Any:
    from datasets import load_dataset

    repo, _, revision = dataset_id.partition("@")
    try:
        return load_dataset(repo, name, split=split, revision=revision or None)
    except read_errors() as error:
        raise DataError(
            f"{dataset_id!r} is no file here, and the hub has no such dataset: {error}. Check the path or id."
        ) from error


__all__ = [
    "JsonLines",
    "is_hub_id",
    "open_file",
    "open_source",
    "parse_json_row",
    "read_errors",
    "rows_with_errors",
    "source_fingerprint",
]

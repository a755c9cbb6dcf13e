"""Files at URLs that fsspec knows, copied once into the cache: ``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://``.

A copy is named by what the store says of the file's version (modification time, ETag, checksum); a store that says
nothing of it is read anew each time, and its copy named by its bytes. Credentials come from the store's own
environment variables and files; whatever of them stands in a URL is in no message.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from automodel_data.cache import cache_root, published
from automodel_data.errors import DataError

# What stores call the version of a file: local, memory, HTTP, S3, Google, Azure and the Hugging Face hub.
_VERSION_KEYS = (
    "mtime", "created", "Last-Modified", "ETag", "Content-MD5", "Digest", "LastModified", "VersionId", "generation",
    "updated", "md5Hash", "crc32c", "last_modified", "etag", "content_md5", "blob_id",
)  # fmt: skip
_SECRET_PARTS = re.compile(r"(?<=://)[^\s/@'\"]+@|\?[^\s'\"]+")


def is_url(text: str) -> bool:
    return "://" in text


def fetch(url: str, *, choose: Callable[[list[str]], list[int]]) -> list[tuple[str, Path]]:
    """Local copies of the files at a URL, a URL glob, or below a URL that is a directory.

    Args:
        url: anything that fsspec opens; globs need a store that can list.
        choose: which of the paths below a directory to read; it sees them relative to the directory.

    Returns: what errors should call each file, without credentials, and its copy; empty where nothing is found.
    Raises: DataError: the store cannot be reached, refuses, or needs a package that is not installed.
    """
    try:
        filesystem, path = _filesystem(url)
        return [_copied(filesystem, remote, single=url) for remote in _paths(filesystem, path, choose)]
    except ImportError as error:
        raise DataError(
            f"{public(url)} needs another package: {error}. Install it (pip install s3fs for s3://, gcsfs for gs://, "
            "aiohttp for https://), or copy the file here."
        ) from None
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - every store has its own errors, with no base in common
        why = public(f"{type(error).__name__}: {error}".strip(": "))
        raise DataError(f"{public(url)} cannot be read: {why}. Check the address and the credentials.") from None


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    filesystem, path = fsspec.url_to_fs(url)
    filesystem.invalidate_cache()  # a listing of earlier in this process may be out of date
    return filesystem, path


def _paths(filesystem: Any, path: str, choose: Callable[[list[str]], list[int]]) -> list[str]:
    # A query such as that of a presigned address holds "?", which is no pattern there.
    if "?" not in path and has_magic(path):
        return sorted(filesystem.glob(path))
    if not PurePosixPath(urlsplit(path).path).suffix and filesystem.isdir(path):
        found, root = sorted(filesystem.find(path)), filesystem._strip_protocol(path).rstrip("/")
        return [found[i] for i in choose([one.removeprefix(root).lstrip("/") for one in found])]
    return [path]


def _copied(filesystem: Any, remote: str, *, single: str) -> tuple[str, Path]:
    info = filesystem.info(remote)
    name = PurePosixPath(urlsplit(remote).path).name
    shown = public(filesystem.unstrip_protocol(remote))
    version = {key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}
    if version:
        key = _digest([shown, single if "@" in single else "", info.get("size"), version])
        return shown, published(f"file-{key}", partial(_get, filesystem, remote, name)) / name
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=_made(cache_root())) as directory:
        _get(filesystem, remote, name, Path(directory))
        with (Path(directory) / name).open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        move = partial(_move, Path(directory) / name)
        return shown, published(f"file-{_digest([name, key])}", move) / name


def _get(filesystem: Any, remote: str, name: str, directory: Path) -> None:
    filesystem.get_file(remote, str(directory / name))


def _move(file: Path, directory: Path) -> None:
    file.rename(directory / file.name)


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the data cache at {directory} cannot be written: {error}. Set AUTOMODEL_DATA_CACHE to a directory with "
            "room."
        ) from error
    return directory


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def public(text: str) -> str:
    """The text without user names, passwords and queries, which hold signatures."""
    return _SECRET_PARTS.sub("", text)

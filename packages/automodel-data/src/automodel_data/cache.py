"""A content-addressed cache on disk: one process builds an entry, the others wait for a file, not for a collective.

An entry is a directory named by its key, built beside its place and renamed into it: it is there whole, or not at all.
A lock file makes other processes wait; a lock dies with its process, and where locks do not work, two builders publish
the same content.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from automodel_data.errors import DataError

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """``$AUTOMODEL_DATA_CACHE``, else ``automodel-data`` in the user's cache directory."""
    given = os.environ.get("AUTOMODEL_DATA_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automodel-data"


def published(key: str, build: Callable[[Path], object]) -> Path:
    """The directory of entry ``key``, built by ``build(directory)`` if it is not there.

    Raises: DataError: the cache cannot be written; and whatever ``build`` raises, after which no entry exists.
    """
    final = cache_root() / key
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.parent / f".{key}.lock"):
            if final.is_dir():  # another process built it while this one waited
                return final
            staging = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=final.parent))
            try:
                build(staging)
                staging.chmod(0o755)
                os.rename(staging, final)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if final.is_dir():  # two builders without working locks: the first one's entry has the same content
            return final
        raise DataError(
            f"the data cache at {final.parent} cannot be written: {error}. Set AUTOMODEL_DATA_CACHE to a directory "
            f"with room, or "
            "pass cache=False."
        ) from error
    return final


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: builders race, and publish the same content
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache, for listing."""

    key: str
    num_bytes: int
    modified: float
    """Seconds since the epoch."""


def entries() -> list[CacheEntry]:
    """What is in the cache, newest first."""
    found = []
    for path in cache_root().glob("[!.]*"):
        files = [p.stat() for p in path.rglob("*") if p.is_file()]
        found.append(CacheEntry(path.name, sum(s.st_size for s in files), path.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.modified)


def remove(key: str) -> int:
    """Delete the entries whose key starts with ``key``; the number of them. Raises: DataError: there is none."""
    matching = [entry.key for entry in entries() if key and entry.key.startswith(key)]
    if not matching:
        raise DataError(f"the cache has no entry {key!r}. `automodel-data cache ls` lists them.")
    for name in matching:
        shutil.rmtree(cache_root() / name)
    return len(matching)

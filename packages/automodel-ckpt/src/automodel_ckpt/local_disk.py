"""A directory of checkpoints on a local or shared file system: each durable step as one method.

All system calls of a save go through ``self.os``, so that tests can count, fail, shorten or end them one by one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from automodel_ckpt.errors import UnsafeFile

_MAX_ATTEMPTS = 100


class LocalDisk:
    """Checkpoint files under ``root``; names are relative, with ``/``.

    Args:
        root: the directory; made when the first file is written.
        system: module with the functions of ``os``; tests pass one that injects faults.
    """

    sequential = False
    """Whether a new file takes bytes in order only."""
    read_bytes = 1 << 20
    """Bytes of one read: hashed while they are in the cache."""

    def __init__(self, root: str | os.PathLike, *, system: ModuleType | Any = os) -> None:
        self.root = Path(root).absolute()
        self.os = system

    def path(self, name: str) -> Path:
        return self.root / name

    def __str__(self) -> str:
        return str(self.root)

    # --- reading ---------------------------------------------------------------------------------------------
    def names(self, directory: str = "") -> list[str]:
        """Entries of a directory, sorted; none when it does not exist."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, directory: str) -> dict[str, int]:
        """Sizes in bytes of all files below ``directory``, by name relative to it; links and devices are -1."""
        found = {}
        base = self.path(directory)
        for folder, folders, names in os.walk(base):
            for name in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                full = os.path.join(folder, name)
                info = os.lstat(full)
                found[os.path.relpath(full, base)] = info.st_size if stat.S_ISREG(info.st_mode) else -1
        return found

    def read(self, name: str, *, limit: int) -> bytes:
        """The whole of a small file.

        Raises: UnsafeFile: larger than ``limit`` bytes, or not a regular file. FileNotFoundError.
        """
        with self.open_read(name) as fd:
            size = os.fstat(fd).st_size
            if size > limit:
                raise UnsafeFile(f"{self.path(name)} has {size} bytes; at most {limit} are read. Is it a checkpoint?")
            return _read_all(fd, size)

    @contextlib.contextmanager
    def open_read(self, name: str) -> Iterator[int]:
        """A file descriptor of a regular file that is not reached through a link."""
        fd = open_regular(self.path(name))
        try:
            yield fd
        finally:
            os.close(fd)

    def read_into(self, handle: int, memory: memoryview, offset: int) -> int:
        """Fill ``memory`` from a byte offset of an open file; return how many bytes came, 0 at its end."""
        return os.preadv(handle, [memory], offset)

    # --- writing ---------------------------------------------------------------------------------------------
    def make_directory(self, name: str) -> None:
        """Make a directory and its parents, without error when it exists."""
        missing = []
        path = self.path(name)
        while not path.exists():
            missing.append(path)
            path = path.parent
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self.os.mkdir(path)

    @contextlib.contextmanager
    def create(self, name: str, *, size: int) -> Iterator[Callable[[Any, int], None]]:
        """A new file of ``size`` bytes, durable when the block ends; yields ``write(bytes, offset)``.

        The space is reserved first, so a full disk is found before anything else happens.
        """
        path = self.path(name)
        fd = self.os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            self._reserve(fd, size)
            yield lambda data, offset: self._write_all(fd, data, offset, path)
            self.os.fsync(fd)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        finally:
            self.os.close(fd)

    def _reserve(self, fd: int, size: int) -> None:
        if size and hasattr(self.os, "posix_fallocate"):
            try:
                self.os.posix_fallocate(fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                    raise

    def _write_all(self, fd: int, data: Any, offset: int, path: Path) -> None:
        view = memoryview(data).cast("B")
        done = attempts = 0
        while done < len(view):
            written = self.os.pwrite(fd, view[done:], offset + done)
            attempts = 0 if written else attempts + 1
            if attempts > _MAX_ATTEMPTS:
                raise OSError(errno.EIO, f"writes take no bytes at offset {offset + done}", str(path))
            done += written

    def write_file(self, name: str, data: bytes) -> None:
        """A small durable new file."""
        with self.create(name, size=len(data)) as write:
            write(data, 0)

    def replace_file(self, name: str, data: bytes, *, run_id: str) -> None:
        """Replace a small file in one step: readers see the old or the new content."""
        temporary = f"{name}.{run_id}.tmp"
        with contextlib.suppress(FileNotFoundError):
            self.os.unlink(self.path(temporary))
        self.write_file(temporary, data)
        self.os.rename(self.path(temporary), self.path(name))
        self.sync_directory(os.path.dirname(name))

    def rename(self, source: str, target: str) -> None:
        """Rename a directory; the caller has made sure that the target does not exist."""
        self.os.rename(self.path(source), self.path(target))

    def sync_directory(self, name: str) -> None:
        """Make the entries of a directory durable."""
        fd = self.os.open(self.path(name), os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            self.os.fsync(fd)
        finally:
            self.os.close(fd)

    def remove(self, name: str) -> None:
        """Delete a directory and everything below it; links are removed, never followed."""
        path = self.path(name)
        for folder, folders, names in os.walk(path, topdown=False):
            for entry in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                self.os.unlink(os.path.join(folder, entry))
            if not os.path.islink(folder):
                self.os.rmdir(folder)

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def free_bytes(self) -> int | None:
        """Bytes that an ordinary user may still write, or None where unknown."""
        info = self.os.statvfs(self.root)
        return info.f_bavail * info.f_frsize


def open_regular(path: str | os.PathLike) -> int:
    """Open for reading, refusing links, pipes and devices.

    Raises: UnsafeFile; FileNotFoundError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnsafeFile(f"{path} is a link or a device; a checkpoint holds regular files only.") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UnsafeFile(f"{path} is not a regular file; a checkpoint holds regular files only.")
    return fd


def _read_all(fd: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.read(fd, min(size, 1 << 24))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

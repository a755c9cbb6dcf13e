"""A directory of checkpoints: staging, the commit, and what is complete in it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from automodel_ckpt import layout, lease
from automodel_ckpt.errors import AlreadyExists, CheckpointError, CheckpointNotFound, CorruptCheckpoint
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest


class Directory(Protocol):
    """Where checkpoints live. Names are relative to the root, with ``/``."""

    sequential: bool
    read_bytes: int

    def path(self, name: str) -> Any: ...
    def names(self, directory: str = "") -> list[str]: ...
    def files(self, directory: str) -> dict[str, int]: ...
    def read(self, name: str, *, limit: int) -> bytes: ...
    def open_read(self, name: str) -> Any: ...
    def read_into(self, handle: Any, memory: memoryview, offset: int) -> int: ...
    def reading(self, name: str) -> Any: ...

    def acquire(self, *, takeover: bool = False) -> None: ...
    def sweep(self) -> None: ...
    def stage(self, step: int, sections: list[str]) -> str: ...
    def create(self, name: str, *, size: int) -> Any: ...
    def write_file(self, name: str, data: bytes) -> None: ...
    def publish(self, staging: str, name: str, manifest: bytes, files: set[str]) -> None: ...
    def abandon(self, staging: str) -> None: ...
    def discard(self, name: str) -> None: ...
    def hint(self, name: str, step: int) -> None: ...
    def in_use(self, name: str) -> bool: ...


class LocalDirectory(LocalDisk):
    """Checkpoints on a file system: published by renaming a staging directory."""

    @property
    def run_id(self) -> str:
        return lease.acquire(self.root).run_id

    def acquire(self, *, takeover: bool = False) -> None:
        """Take the lease, see `automodel_ckpt.lease`."""
        self.make_directory("")
        lease.acquire(self.root, takeover=takeover)

    def sweep(self) -> None:
        """Delete what dead runs left half-written or half-deleted. Only the holder of the lease may do this."""
        for name in self.names():
            if name.startswith((layout.SAVING, layout.TRASH)):
                self.remove(name)

    def stage(self, step: int, sections: list[str]) -> str:
        """Make an empty staging directory with a subdirectory for each section; return its name."""
        name = layout.saving_name(step, self.run_id)
        self.os.mkdir(self.path(name))
        for section in sections:
            self.os.mkdir(self.path(f"{name}/{section}"))
        self.sync_directory("")
        return name

    def publish(self, staging: str, name: str, manifest: bytes, files: set[str]) -> None:
        """Complete the staging directory and give it its final name. The last rename is the commit.

        Raises: AlreadyExists: something that is not an incomplete checkpoint of ours has the name.
        """
        self.write_file(f"{staging}/{layout.MANIFEST}", manifest)
        for folder in sorted({os.path.dirname(file) for file in files} - {""}):
            self.sync_directory(f"{staging}/{folder}")
        self.sync_directory(staging)
        if self.exists(name):
            self._move_aside(name)
        self.rename(staging, name)
        try:
            self.sync_directory("")
        except OSError:
            # Visible but perhaps not durable: taken back, because the caller is told that the save failed.
            self.discard(name)
            raise

    def _move_aside(self, name: str) -> None:
        if is_complete(self, name) or not self.exists(f"{name}/{layout.MANIFEST}"):
            raise AlreadyExists(
                f"{self.path(name)} exists and is not a damaged checkpoint of ours; it is left alone. "
                "Move it away, or save into another directory."
            )
        self.discard(name)

    def abandon(self, staging: str) -> None:
        """Delete a staging directory."""
        self.discard(staging)

    def discard(self, name: str) -> None:
        """Delete a directory so that no reader ever takes a part of it for the whole: rename first."""
        trash = layout.trash_name(name, self.run_id)
        self.remove(trash)
        with contextlib.suppress(FileNotFoundError):
            self.rename(name, trash)
            self.sync_directory("")
            self.remove(trash)

    def hint(self, name: str, step: int) -> None:
        """Write ``LATEST`` or ``BEST``."""
        self.replace_file(name, f"{layout.step_name(step)}\n".encode(), run_id=self.run_id)

    def in_use(self, name: str) -> bool:
        """Whether another process is reading the checkpoint (see `reading`)."""
        import fcntl

        try:
            fd = os.open(self.path(f"{name}/{layout.MANIFEST}"), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    @contextlib.contextmanager
    def reading(self, name: str):
        """Hold a shared lock on the manifest, so that retention in another process leaves the checkpoint alone."""
        import fcntl

        with self.open_read(f"{name}/{layout.MANIFEST}") as fd:
            with contextlib.suppress(OSError):  # without locks, a checkpoint may be deleted while it is read
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield


def open_directory(root: str | os.PathLike | Directory) -> Any:
    """The directory for a path or a URL (``s3://bucket/run``); a ready one is passed through.

    Raises: ValueError: fsspec has no such protocol here.
    """
    if is_url(root):
        from automodel_ckpt.object_store import ObjectStore

        return ObjectStore(root)
    if isinstance(root, (str, os.PathLike)):
        return LocalDirectory(root)
    return root


def is_url(path: Any) -> TypeGuard[str]:
    """Whether a path is a URL of an object store."""
    return isinstance(path, str) and "://" in path


def split(path: str | os.PathLike | Directory) -> tuple[Any, str | None]:
    """The directory at ``path`` and None; or that above ``path`` and a name, if it is a single checkpoint."""
    if is_url(path):
        root, _, last = path.rstrip("/").rpartition("/")
        return (open_directory(root), last) if layout.step_of(last) is not None else (open_directory(path), None)
    if isinstance(path, (str, os.PathLike)):
        own = Path(path).absolute()
        if layout.step_of(own.name) is not None or (own / layout.MANIFEST).exists():
            return LocalDirectory(own.parent), own.name
    return open_directory(path), None


def locate(path: str | os.PathLike | Directory) -> tuple[Any, str]:
    """The directory and the name of the checkpoint at ``path``: a checkpoint, or the newest one below a root.

    Raises: CheckpointNotFound: neither.
    """
    directory, name = split(path)
    if name is not None:
        if not directory.files(name):
            raise CheckpointNotFound(f"{path} does not exist. List what does: automodel-ckpt ls {directory}")
        return directory, name
    name = newest(directory)
    if name is None:
        raise CheckpointNotFound(f"{directory} holds no complete checkpoint. See: automodel-ckpt ls {directory}")
    return directory, name


def steps(directory: Directory) -> list[int]:
    """Steps with a directory of the right name, ascending; they may be incomplete."""
    found = (layout.step_of(name) for name in directory.names())
    return sorted(step for step in found if step is not None)


def newest(directory: Directory) -> str | None:
    """The name of the newest complete checkpoint."""
    for step in reversed(steps(directory)):
        if is_complete(directory, layout.step_name(step)):
            return layout.step_name(step)
    return None


def read_manifest(directory: Directory, name: str) -> Manifest:
    """The manifest of a checkpoint.

    Raises: CheckpointNotFound: it has none. CorruptCheckpoint, UnsafeFile: it is damaged or hostile.
    """
    where = str(directory.path(f"{name}/{layout.MANIFEST}"))
    try:
        data = directory.read(f"{name}/{layout.MANIFEST}", limit=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFound(f"{where} does not exist: the directory is not a complete checkpoint.") from error
    return parse_manifest(data, where=where)


def check_sizes(directory: Directory, name: str, manifest: Manifest) -> None:
    """Every listed file is there, regular, and of the right size.

    Raises: CorruptCheckpoint: names the first file that is not.
    """
    sizes = directory.files(name)
    for file, record in manifest.files.items():
        if file not in sizes:
            raise CorruptCheckpoint(f"{directory.path(name)}: file {file!r} is missing.", file=file)
        if sizes[file] != record.bytes:
            what = "is a link or a device" if sizes[file] < 0 else f"has {sizes[file]} bytes"
            raise CorruptCheckpoint(
                f"{directory.path(name)}: file {file!r} {what} where {record.bytes} bytes were written.", file=file
            )


def is_complete(directory: Directory, name: str) -> bool:
    """Whether a checkpoint has an intact manifest and all its files in the right sizes."""
    try:
        check_sizes(directory, name, read_manifest(directory, name))
    except (CheckpointError, OSError):
        return False
    return True


def latest(root: str | os.PathLike | Directory) -> Any:
    """The newest complete checkpoint below ``root``, or None; incomplete ones and foreign names are passed over.

    Below a path it is a ``Path``, below a URL a URL.
    """
    directory = open_directory(root)
    name = newest(directory)
    return None if name is None else directory.path(name)


def best(root: str | os.PathLike | Directory, metric: str, *, mode: str = "min") -> Any:
    """The complete checkpoint with the lowest (``mode="max"``: highest) value of a metric, or None."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode={mode!r}: allowed are 'min' and 'max'.")
    directory = open_directory(root)
    ranked = ranking(directory, metric, mode)
    return directory.path(layout.step_name(ranked[0])) if ranked else None


def ranking(directory: Directory, metric: str, mode: str) -> list[int]:
    """Complete steps that have a metric, best first, the later one first among equals."""
    sign = 1 if mode == "min" else -1
    scored = []
    for step in steps(directory):
        name = layout.step_name(step)
        try:
            manifest = read_manifest(directory, name)
            if metric in manifest.metrics:
                check_sizes(directory, name, manifest)
                scored.append((sign * manifest.metrics[metric], -step))
        except (CheckpointError, OSError):
            continue
    return [-step for _, step in sorted(scored)]

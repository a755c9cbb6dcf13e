"""A directory of checkpoints in an object store (S3, GCS, Azure, ...) through fsspec.

Objects cannot be renamed in one step, so the manifest is the commit: it is written last, and only if there is none
yet, where the store offers that. Without it a checkpoint is not there, whatever objects it already has.

::

    s3://bucket/run/
      .lock                       lease, see `automodel_ckpt.object_lease`
      .saving-00001300-<run>      note that step 1300 was begun; deleted once its manifest is there
      step-00001200/...           as on disk
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from automodel_ckpt import layout, object_lease
from automodel_ckpt.errors import AlreadyExists, UnsafeFile
from automodel_ckpt.manifest import BLOCK_BYTES

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
_SAVING = re.compile(re.escape(layout.SAVING) + r"(\d{8,18})-\w+")


class ObjectStore:
    """Checkpoints below a prefix of an object store; a `automodel_ckpt.directory.Directory`.

    Args:
        url: of the prefix, such as ``s3://bucket/run``.
        fs: ready fsspec file system; default: made from the URL, with credentials from where the store's own client
            takes them (environment, instance profile).
    """

    sequential = True
    """Uploads take bytes in order, so a file is written by one thread."""
    read_bytes = BLOCK_BYTES
    """Bytes of one request."""

    def __init__(self, url: str, *, fs: Any = None) -> None:
        self.url = url.rstrip("/")
        self.fs: Any = _Client(_file_system(self.url) if fs is None else fs, self.url)
        self.root = self.fs._strip_protocol(self.url).rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def __str__(self) -> str:
        return self.url

    def key(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    # --- reading ---------------------------------------------------------------------------------------------
    def names(self, directory: str = "") -> list[str]:
        """Entries below a prefix, sorted; none when it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.key(directory), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found})

    def files(self, directory: str) -> dict[str, int]:
        """Sizes in bytes of all objects below a prefix, by name relative to it."""
        self.fs.invalidate_cache()
        base = self.key(directory)
        found = self.fs.find(base, detail=True)
        return {name[len(base) + 1 :]: int(info["size"]) for name, info in found.items() if name.startswith(f"{base}/")}

    def read(self, name: str, *, limit: int) -> bytes:
        """The whole of a small object.

        Raises: UnsafeFile: larger than ``limit`` bytes. FileNotFoundError.
        """
        self.fs.invalidate_cache()
        size = int(self.fs.info(self.key(name))["size"])
        if size > limit:
            raise UnsafeFile(f"{self.path(name)} has {size} bytes; at most {limit} are read. Is it a checkpoint?")
        return bytes(self.fs.cat_file(self.key(name), start=0, end=size))

    @contextlib.contextmanager
    def open_read(self, name: str) -> Iterator[str]:
        """What `read_into` takes: the object's key."""
        yield self.key(name)

    def read_into(self, handle: str, memory: memoryview, offset: int) -> int:
        """Fill ``memory`` from ``offset`` on; return the number of bytes, fewer at the end of the object."""
        data = self.fs.cat_file(handle, start=offset, end=offset + len(memory))
        memory[: len(data)] = data
        return len(data)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Nothing: object stores have no locks. A checkpoint that is deleted while it is read ends in an error."""
        yield

    def in_use(self, name: str) -> bool:
        return False

    # --- writing ---------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def create(self, name: str, *, size: int) -> Iterator[Callable[[Any, int], None]]:
        """A new object; yields ``write(bytes, offset)``, in order of offsets. After an error the upload is aborted."""
        file = self.fs.open(self.key(name), "wb", block_size=BLOCK_BYTES, autocommit=False)
        position = 0

        def write(data: Any, offset: int) -> None:
            nonlocal position
            assert offset == position, f"{name}: {offset} written after {position} bytes"
            with _named(self.path(name)):
                file.write(data)
            position += len(data)

        try:
            yield write
            with _named(self.path(name)):
                file.close()
                file.commit()
        except BaseException:
            _abort(file)
            raise

    def write_file(self, name: str, data: bytes) -> None:
        """A small object."""
        self.fs.pipe_file(self.key(name), data)

    @property
    def run_id(self) -> str:
        return object_lease.acquire(self).run_id

    def acquire(self, *, takeover: bool = False) -> None:
        """Take the lease, see `automodel_ckpt.object_lease`."""
        object_lease.acquire(self, takeover=takeover)

    def sweep(self) -> None:
        """Delete what dead runs began and did not finish. Only the holder of the lease may do this."""
        for note in self.names():
            begun = _SAVING.fullmatch(note)
            if begun:
                self.abandon(layout.step_name(int(begun[1])))
                self.fs.rm_file(self.key(note))
            elif note.startswith(layout.TRASH) and layout.step_of(note.removeprefix(layout.TRASH)) is not None:
                self._delete(note.removeprefix(layout.TRASH))
                self.fs.rm_file(self.key(note))

    def stage(self, step: int, sections: list[str]) -> str:
        """Note that a step is begun; return the name under which its files go.

        Raises: AlreadyExists: objects that are not the rest of a save of ours have the name.
        """
        name = layout.step_name(step)
        if self.files(name):
            raise AlreadyExists(
                f"{self.path(name)} exists and is not an unfinished checkpoint of ours; it is left alone. "
                "Move it away, or save under another prefix."
            )
        self.write_file(layout.saving_name(step, self.run_id), b"")
        return name

    def publish(self, staging: str, name: str, manifest: bytes, files: set[str]) -> None:
        """Write the manifest. This is the commit.

        Raises: AlreadyExists: another run has published the step meanwhile.
        """
        try:
            self.fs.pipe_file(self.key(f"{staging}/{layout.MANIFEST}"), manifest, mode="create")
        except FileExistsError as error:
            raise AlreadyExists(
                f"{self.path(name)} was published by another run meanwhile. Stop one of them."
            ) from error
        with contextlib.suppress(OSError):  # the next sweep deletes the note, and nothing else
            self.fs.rm_file(self.key(layout.saving_name(layout.step_of(name) or 0, self.run_id)))

    def abandon(self, staging: str) -> None:
        """Delete the objects of a save that did not happen, unless there is a manifest after all."""
        if layout.MANIFEST not in self.files(staging):
            self._delete(staging)

    def discard(self, name: str) -> None:
        """Delete a checkpoint, its manifest first, so that no reader takes a part of it for the whole."""
        note = f"{layout.TRASH}{name}"
        self.write_file(note, b"")
        self._delete(name)
        self.fs.rm_file(self.key(note))

    def _delete(self, name: str) -> None:
        for file in sorted(self.files(name), key=lambda file: file != layout.MANIFEST):
            self.fs.rm_file(self.key(f"{name}/{file}"))

    def hint(self, name: str, step: int) -> None:
        """Write ``LATEST`` or ``BEST``."""
        self.write_file(name, f"{layout.step_name(step)}\n".encode())


class _Client:
    """An fsspec file system whose every error is an ``OSError`` with the URL: clients raise classes of their own."""

    def __init__(self, fs: Any, url: str) -> None:
        self._fs, self._url = fs, url

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._fs, name)

        def call(*arguments: Any, **keys: Any) -> Any:
            with _named(self._url):
                return function(*arguments, **keys)

        return call


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or url
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error


def _abort(file: Any) -> None:
    """End an upload without an object; the store keeps no parts of it."""
    with contextlib.suppress(Exception):
        file.discard()
    with contextlib.suppress(AttributeError):
        file.closed = True  # fsspec's destructor would upload the rest


def _file_system(url: str) -> Any:
    """The fsspec file system of a URL.

    Raises: ValueError: the protocol is unknown, or its package is not installed.
    """
    fsspec = importlib.import_module("fsspec")
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(protocol)
        hint = f"Install it: pip install {package}" if package else "Give s3://, gs://, az:// or a path."
        raise ValueError(f"{url!r}: fsspec cannot open {protocol}:// here ({error}). {hint}") from error

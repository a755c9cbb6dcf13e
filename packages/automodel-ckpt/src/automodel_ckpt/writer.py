"""Write safetensors files block by block: each byte is hashed and written once, straight from tensor memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash
from torch import Tensor

from automodel_ckpt.dtypes import dtype_name
from automodel_ckpt.manifest import BLOCK_BYTES, FileRecord
from automodel_ckpt.progress import counted
from automodel_ckpt.safetensors_file import Entry, make_header
from automodel_ckpt.tensor_bytes import byte_reader

SLICE_BYTES = 1 << 20  # hash and write while the bytes are in the cache


class Sink(Protocol):
    """Where new files go."""

    def create(self, name: str, *, size: int) -> Any:
        """Context manager yielding ``write(bytes, offset)``; durable when it ends."""
        ...

    def write_file(self, name: str, data: bytes) -> None: ...


@dataclass(frozen=True)
class _Source:
    """Bytes ``start .. end`` of a file, and how to read them."""

    start: int
    end: int
    read: Callable[[int, int], memoryview]


def write_tensors(
    sink: Sink, name: str, tensors: dict[str, Tensor], *, threads: int = 1, stop: threading.Event | None = None
) -> tuple[FileRecord, list[Entry]]:
    """Write one safetensors file.

    Args:
        tensors: plain tensors on any device, stored row-major in this order.
        threads: blocks written at a time.
        stop: when set by another thread, writing ends with an error.

    Returns: its record, and where each tensor lies.
    Raises: OSError with the path.
    """
    header, entries = make_header((key, dtype_name(t.dtype), tuple(t.shape)) for key, t in tensors.items())
    sources = [_Source(0, len(header), lambda a, b: memoryview(header)[a:b])]
    sources += [_Source(e.start, e.end, byte_reader(tensors[e.name])) for e in entries if e.end > e.start]
    return write_sources(sink, name, sources, threads=threads, stop=stop), entries


def write_sources(
    sink: Sink, name: str, sources: list[_Source], *, threads: int = 1, stop: threading.Event | None = None
) -> FileRecord:
    """Write contiguous sources as one file, hashing each block."""
    size = sources[-1].end if sources else 0
    blocks = list(_blocks(sources, size))
    with sink.create(name, size=size) as write, _mapper(threads) as run:

        def one(block: tuple[int, list[tuple[_Source, int, int]]]) -> str:
            return _write_block(write, block[1], stop)

        hashes = tuple(counted(run(one, blocks), "save", size, size=lambda _: BLOCK_BYTES))
    return FileRecord(size, hashes)


def _blocks(sources: list[_Source], size: int) -> Iterator[tuple[int, list[tuple[_Source, int, int]]]]:
    """For each block of the file: its start, and the (source, from, to) pieces that fill it, in file offsets."""
    index = 0
    for start in range(0, size, BLOCK_BYTES):
        end, pieces = min(start + BLOCK_BYTES, size), []
        while index < len(sources) and sources[index].start < end:
            source = sources[index]
            pieces.append((source, max(start, source.start), min(end, source.end)))
            if source.end > end:
                break
            index += 1
        yield start, pieces


def _write_block(
    write: Callable[[Any, int], None], pieces: list[tuple[_Source, int, int]], stop: threading.Event | None
) -> str:
    digest = xxhash.xxh3_64()
    for source, start, end in pieces:
        for low in range(start, end, SLICE_BYTES):
            if stop is not None and stop.is_set():
                raise InterruptedError("the save was cancelled")
            high = min(low + SLICE_BYTES, end)
            data = source.read(low - source.start, high - source.start)
            digest.update(data)
            write(data, low)
    return digest.hexdigest()


@contextmanager
def _mapper(threads: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    """``map``, or one over threads whose first error is raised."""
    if threads <= 1:
        yield map
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="ckpt-write") as pool:
        yield pool.map


def write_bytes(sink: Sink, name: str, data: bytes) -> FileRecord:
    """Write a small file and return its record."""
    sink.write_file(name, data)
    return record_of(data)


def record_of(data: bytes) -> FileRecord:
    """The record of a file that holds ``data``."""
    view = memoryview(data)
    blocks = (view[i : i + BLOCK_BYTES] for i in range(0, len(view), BLOCK_BYTES))
    return FileRecord(len(data), tuple(xxhash.xxh3_64_hexdigest(block) for block in blocks))

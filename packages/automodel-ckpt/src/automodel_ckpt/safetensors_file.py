"""The safetensors container: headers written for other tools to read, and read as hostile input.

Format: 8 bytes little-endian header length, JSON header, data. Offsets count from the end of the header.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from automodel_ckpt.dtypes import ITEM_BYTES
from automodel_ckpt.errors import CorruptCheckpoint, UnsafeFile

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: safetensors dtype name, shape, first and one-past-last byte in the *file*."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, list[Entry]]:
    """The header of a file that holds tensors ``(name, dtype name, shape)`` in this order, and where each goes.

    The header is padded so that the data starts at a multiple of 64 bytes: mapped tensors are aligned.
    """
    offset, table, sized = 0, {}, []
    for name, dtype, shape in tensors:
        num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        sized.append((name, dtype, tuple(shape), offset, offset + num_bytes))
        offset += num_bytes
    text = json.dumps({_METADATA: {"format": "pt"}, **table}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 64)
    header = struct.pack("<Q", len(text)) + text
    return header, [Entry(name, dtype, shape, len(header) + a, len(header) + b) for name, dtype, shape, a, b in sized]


def read_header(fd: int, *, where: str | os.PathLike) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of an open safetensors file, checked as untrusted input.

    Raises: CorruptCheckpoint: truncated, holes, overlaps, sizes that disagree, duplicate names.
        UnsafeFile: a pickle or an archive in place of safetensors, or an absurd header.
    """
    size = os.fstat(fd).st_size
    first = os.pread(fd, 8, 0)
    _refuse_pickle(first, where)
    if len(first) < 8:
        raise CorruptCheckpoint(f"{where}: {size} bytes are no safetensors file; it is truncated.", file=where)
    length = struct.unpack("<Q", first)[0]
    if length > MAX_HEADER_BYTES:
        raise UnsafeFile(f"{where}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are read.")
    if 8 + length > size:
        raise CorruptCheckpoint(f"{where}: the header needs {8 + length} bytes, the file has {size}.", file=where)
    try:
        table = json.loads(os.pread(fd, length, 8), object_pairs_hook=_no_duplicates)
        metadata = table.pop(_METADATA, {})
        entries = {name: _entry(name, record, 8 + length) for name, record in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{where}: malformed safetensors header: {error}", file=where) from error
    _check_contiguous(entries, 8 + length, size, where)
    return entries, metadata if isinstance(metadata, dict) else {}


def _refuse_pickle(first: bytes, where: str | os.PathLike) -> None:
    if first[:2] in (b"PK", b"\x1f\x8b") or (first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05"):
        raise UnsafeFile(
            f"{where} is a pickle or an archive, which can run code when it is read. Only safetensors is read here; "
            "convert a torch checkpoint with: automodel-ckpt import"
        )


def _no_duplicates(pairs: list) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(name: str, record: dict, data_start: int) -> Entry:
    dtype, shape = record["dtype"], record["shape"]
    start, end = record["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, start, end)):
        raise ValueError(f"{name!r} has sizes that are not counts")
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name!r}: {end - start} bytes for shape {shape} of {dtype}")
    return Entry(name, dtype, tuple(shape), data_start + start, data_start + end)


def _check_contiguous(entries: dict[str, Entry], position: int, size: int, where: str | os.PathLike) -> None:
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        if entry.start != position:
            raise CorruptCheckpoint(
                f"{where}: {entry.name!r} starts at byte {entry.start}, not at {position}: a hole or an overlap.",
                file=where,
                tensor=entry.name,
            )
        position = entry.end
    if position != size:
        raise CorruptCheckpoint(f"{where}: {size} bytes where the header accounts for {position}.", file=where)

"""MANIFEST.json: the one file that says what a checkpoint consists of.

The text is canonical JSON with a digest of itself, so any change to it shows. Every number and name in it is
checked before it is used: a manifest is input, not trusted.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import xxhash

from automodel_ckpt.boxes import Box, tiles
from automodel_ckpt.dtypes import ITEM_BYTES
from automodel_ckpt.errors import CorruptCheckpoint, UnsafeFile

FORMAT_VERSION = 1
BLOCK_BYTES = 16 * 1024 * 1024
MAX_MANIFEST_BYTES = 1 << 30
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_MAX_INT = 1 << 62


@dataclass(frozen=True)
class FileRecord:
    """One file: its size in bytes and the xxh3-64 of each block of `BLOCK_BYTES`, as 16 hex digits each."""

    bytes: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: ``box`` of it lies contiguous in ``file`` from byte ``start``."""

    file: str
    start: int
    box: Box


@dataclass(frozen=True)
class TensorRecord:
    """One global tensor: safetensors dtype name, shape, and the parts that tile it."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Section:
    """One entry of the saved state."""

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    tree: dict[str, str] = field(default_factory=dict)
    """JSON files of this section: ``{"": "train.json"}``, or one per rank: ``{"0": "rank-00000.json"}``."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Tied tensors: name -> the name under which the bytes are stored."""
    frozen: dict[str, tuple[int, ...]] | None = None
    """Shapes of the tensors that were left out on purpose; None when nothing was."""


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's contents."""

    step: int
    files: dict[str, FileRecord]
    sections: dict[str, Section]
    metrics: dict[str, float] = field(default_factory=dict)
    world_size: int = 1
    info: dict[str, Any] = field(default_factory=dict)
    """Versions, host, time, and what the caller gave as ``info``; never used for loading."""

    def to_bytes(self) -> bytes:
        """Canonical JSON with the digest."""
        body = {
            "format": "automodel-ckpt",
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "world_size": self.world_size,
            "metrics": self.metrics,
            "info": self.info,
            "block_bytes": BLOCK_BYTES,
            "files": {name: {"bytes": f.bytes, "xxh3": "".join(f.blocks)} for name, f in self.files.items()},
            "sections": {name: _section_json(section) for name, section in self.sections.items()},
        }
        body["digest"] = _digest(body)
        return _canonical(body)


def _section_json(section: Section) -> dict[str, Any]:
    tensors = {
        name: [t.dtype, list(t.shape), [[c.file, c.start, list(c.box.offset), list(c.box.shape)] for c in t.chunks]]
        for name, t in section.tensors.items()
    }
    frozen = None if section.frozen is None else {name: list(shape) for name, shape in section.frozen.items()}
    return {"tensors": tensors, "tree": section.tree, "aliases": section.aliases, "frozen": frozen}


def _canonical(body: dict) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _digest(body: dict) -> str:
    return xxhash.xxh3_128_hexdigest(_canonical(body))


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read and check a manifest.

    Raises: CorruptCheckpoint: not a manifest, changed since it was written, or inconsistent with itself.
        UnsafeFile: a name in it would leave the directory.
    """
    body = _parse_canonical(data, where)
    version = body.get("format_version")
    if body.get("format") != "automodel-ckpt" or version != FORMAT_VERSION:
        raise CorruptCheckpoint(
            f"{where}: format {body.get('format')!r} version {version!r}; this release reads 'automodel-ckpt' version "
            f"{FORMAT_VERSION}. Upgrade: pip install -U automodel-ckpt",
            file=where,
        )
    try:
        manifest = _from_json(body, where)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptCheckpoint(f"{where}: malformed manifest: {error!r}", file=where) from error
    check_tiling(manifest, where)
    return manifest


def _parse_canonical(data: bytes, where: str) -> dict:
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or _canonical(body) != data:
            raise ValueError("not in the form in which it was written")
        given = body.pop("digest")
        if given != _digest(body):
            raise ValueError("its digest does not match")
    except (ValueError, KeyError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{where}: the manifest is damaged ({error}). Use an older checkpoint, or restore the file.", file=where
        ) from error
    return body


def _from_json(body: dict, where: str) -> Manifest:
    if body["block_bytes"] != BLOCK_BYTES:
        raise ValueError(f"block_bytes {body['block_bytes']}")
    files = {safe_name(name, where): _file_from_json(f) for name, f in body["files"].items()}
    sections = {name: _section_from_json(s, files, where) for name, s in body["sections"].items()}
    return Manifest(
        step=_count(body["step"]),
        files=files,
        sections=sections,
        metrics={str(k): float(v) for k, v in body["metrics"].items()},
        world_size=_count(body["world_size"]),
        info=dict(body["info"]),
    )


def _file_from_json(record: dict) -> FileRecord:
    size, text = _count(record["bytes"]), record["xxh3"]
    count = -(-size // BLOCK_BYTES)
    if not isinstance(text, str) or len(text) != 16 * count:
        raise ValueError(f"{len(text)} hash digits for {count} blocks")
    return FileRecord(size, tuple(text[i : i + 16] for i in range(0, len(text), 16)))


def _section_from_json(body: dict, files: dict[str, FileRecord], where: str) -> Section:
    tensors = {name: _tensor_from_json(name, record, files) for name, record in body["tensors"].items()}
    for file in body["tree"].values():
        if file not in files:
            raise ValueError(f"file {file!r} is not listed")
    for alias, name in body["aliases"].items():
        if name not in tensors or alias in tensors:
            raise ValueError(f"alias {alias!r} of {name!r}")
    frozen = body["frozen"]
    if frozen is not None:
        frozen = {name: tuple(_count(n) for n in shape) for name, shape in frozen.items()}
    return Section(tensors, dict(body["tree"]), dict(body["aliases"]), frozen)


def _tensor_from_json(name: str, record: list, files: dict[str, FileRecord]) -> TensorRecord:
    dtype, shape, chunks = record
    shape = tuple(_count(n) for n in shape)
    parsed = []
    for file, start, offset, size in chunks:
        box = Box(tuple(_count(n) for n in offset), tuple(_count(n) for n in size))
        if file not in files or _count(start) + box.numel * ITEM_BYTES[dtype] > files[file].bytes:
            raise ValueError(f"a part of {name!r} lies outside file {file!r}")
        parsed.append(Chunk(file, start, box))
    return TensorRecord(dtype, shape, tuple(parsed))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_INT:
        raise ValueError(f"{value!r} is not a count")
    return value


def safe_name(name: str, where: str) -> str:
    """``name`` if it stays below its directory: relative, plain parts, no ``..``.

    Raises: UnsafeFile.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name) or len(name) > 4096:
        raise UnsafeFile(f"{where} names a file {name!r}: only relative names below the checkpoint are opened.")
    return name


def check_tiling(manifest: Manifest, where: str) -> None:
    """Every tensor is covered exactly once by its parts.

    Raises: CorruptCheckpoint: names the tensor.
    """
    for section_name, section in manifest.sections.items():
        for name, record in section.tensors.items():
            problem = tiles(record.shape, [chunk.box for chunk in record.chunks])
            if problem:
                raise CorruptCheckpoint(f"{where}: tensor {name!r} of {section_name!r}: {problem}", tensor=name)


def num_bytes(record: TensorRecord) -> int:
    """Bytes of a whole tensor."""
    return math.prod(record.shape) * ITEM_BYTES[record.dtype]

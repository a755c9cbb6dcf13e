"""Check every byte of a checkpoint against its manifest, without loading it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from automodel_ckpt import layout
from automodel_ckpt.directory import Directory, locate, read_manifest
from automodel_ckpt.errors import CheckpointError, CorruptCheckpoint
from automodel_ckpt.manifest import BLOCK_BYTES, FileRecord, Manifest


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; ``problems`` is empty when the checkpoint is intact."""

    path: Path
    level: str
    problems: tuple[str, ...]
    num_files: int
    bytes_read: int
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: str | os.PathLike | Directory, level: str = "hash", *, check: bool = True, threads: int = 2
) -> VerifyReport:
    """Compare a checkpoint with its manifest.

    Args:
        path: a checkpoint, or a directory of them: then the newest complete one.
        level: ``"size"`` looks at names and sizes, ``"hash"`` reads every byte.
        check: raise on the first call that finds a problem; False returns the report.
        threads: files read at a time.

    Raises: CorruptCheckpoint: lists every problem. CheckpointNotFound: there is no manifest.
    """
    if level not in ("size", "hash"):
        raise ValueError(f"level={level!r}: allowed are 'size' and 'hash'.")
    began = time.monotonic()
    directory, name = locate(path)
    problems: list[str] = []
    total, num_files = 0, 0
    try:
        manifest = read_manifest(directory, name)
        num_files = len(manifest.files)
        problems = _check_files(directory, name, manifest)
        if level == "hash":
            more, total = _check_blocks(directory, name, manifest, threads)
            problems += more
    except CorruptCheckpoint as error:
        problems.append(str(error))
    report = VerifyReport(directory.path(name), level, tuple(problems), num_files, total, time.monotonic() - began)
    if check and problems:
        raise CorruptCheckpoint(
            f"{report.path}: {'; '.join(problems[:8])}. Use an older checkpoint: automodel-ckpt ls {directory}",
            file=report.path,
        )
    return report


def _check_files(directory: Directory, name: str, manifest: Manifest) -> list[str]:
    sizes = directory.files(name)
    problems = []
    for file, record in manifest.files.items():
        if file not in sizes:
            problems.append(f"{file} is missing")
        elif sizes[file] != record.bytes:
            problems.append(f"{file} has {sizes[file]} bytes where {record.bytes} were written")
    strangers = sorted(sizes.keys() - manifest.files.keys() - {layout.MANIFEST})
    return problems + [f"{file} is not part of the checkpoint" for file in strangers]


def _check_blocks(directory: Directory, name: str, manifest: Manifest, threads: int) -> tuple[list[str], int]:
    def one(item: tuple[str, FileRecord]) -> tuple[list[str], int]:
        try:
            return _check_file(directory, f"{name}/{item[0]}", item[0], item[1], manifest)
        except FileNotFoundError:
            return [], 0
        except (CheckpointError, OSError) as error:
            return [f"{item[0]}: {error}"], 0

    with ThreadPoolExecutor(threads, thread_name_prefix="ckpt-verify") as pool:
        results = list(pool.map(one, manifest.files.items()))
    return [problem for problems, _ in results for problem in problems], sum(size for _, size in results)


def _check_file(
    directory: Directory, path: str, file: str, record: FileRecord, manifest: Manifest
) -> tuple[list[str], int]:
    buffer = memoryview(bytearray(directory.read_bytes))
    problems = []
    with directory.open_read(path) as fd:
        for index, expected in enumerate(record.blocks):
            start = index * BLOCK_BYTES
            end = min(start + BLOCK_BYTES, record.bytes)
            digest = xxhash.xxh3_64()
            position = start
            while position < end:
                count = directory.read_into(fd, buffer[: min(len(buffer), end - position)], position)
                if count == 0:
                    break
                digest.update(buffer[:count])
                position += count
            if position < end or digest.hexdigest() != expected:
                tensors = ", ".join(_tensors_at(manifest, file, start, end)[:3]) or "header"
                problems.append(f"{file} differs from what was written between bytes {start} and {end} ({tensors})")
    return problems, record.bytes


def _tensors_at(manifest: Manifest, file: str, start: int, end: int) -> list[str]:
    return [
        name
        for section in manifest.sections.values()
        for name, record in section.tensors.items()
        if any(chunk.file == file and start <= chunk.start < end for chunk in record.chunks)
    ]

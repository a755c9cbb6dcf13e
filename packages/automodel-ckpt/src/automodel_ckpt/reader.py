"""Read parts of tensors from checkpoint files: only the blocks that are needed, each one checked once.

Bytes go straight from the file into the destination where its memory is flat, else through a buffer of at most
`STAGE_BYTES`. A block is hashed as it arrives, so an error names the tensor, and nothing is read twice.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from automodel_ckpt.boxes import Box
from automodel_ckpt.directory import Directory
from automodel_ckpt.dtypes import ITEM_BYTES, dtype_of
from automodel_ckpt.errors import CorruptCheckpoint
from automodel_ckpt.manifest import BLOCK_BYTES, FileRecord, TensorRecord
from automodel_ckpt.progress import counted
from automodel_ckpt.tensor_bytes import is_flat_cpu, writable_bytes

STAGE_BYTES = BLOCK_BYTES


@dataclass(frozen=True)
class Target:
    """Bytes ``start .. end`` of a file, wanted at ``memory``; ``arrived(n)`` is told how many bytes have come."""

    tensor: str
    start: int
    end: int
    memory: Callable[[], memoryview]
    arrived: Callable[[int], None]


def targets_for(name: str, record: TensorRecord, box: Box, local: Tensor) -> dict[str, list[Target]]:
    """What to read so that ``local``, which is ``box`` of the tensor, is filled: by file."""
    found: dict[str, list[Target]] = defaultdict(list)
    for chunk in record.chunks:
        common = chunk.box.intersect(box)
        if common is None:
            continue
        for rows in _row_ranges(chunk.box, common, ITEM_BYTES[record.dtype]):
            found[chunk.file].append(_target(name, record, chunk.box, chunk.start, rows, box, local))
    return found


def _row_ranges(chunk: Box, common: Box, item: int) -> Iterable[Box]:
    """Cut ``common`` along its first dimension so that each cut needs at most `STAGE_BYTES` of the chunk's rows."""
    if not common.shape or not chunk.shape:
        return [common]
    row_bytes = item * max(1, chunk.numel // max(1, chunk.shape[0]))
    step = max(1, STAGE_BYTES // row_bytes)
    first, end = common.offset[0], common.offset[0] + common.shape[0]
    return [
        Box((low, *common.offset[1:]), (min(step, end - low), *common.shape[1:])) for low in range(first, end, step)
    ]


def _target(name: str, record: TensorRecord, chunk: Box, start: int, part: Box, box: Box, local: Tensor) -> Target:
    """One contiguous read: the chunk's rows that hold ``part``."""
    item = ITEM_BYTES[record.dtype]
    row_bytes = item * (chunk.numel // chunk.shape[0]) if chunk.shape else item
    low = start + (part.offset[0] - chunk.offset[0]) * row_bytes if chunk.shape else start
    num_rows = part.shape[0] if chunk.shape else 1
    view = box.view(local, part)
    whole_rows = part.shape[1:] == chunk.shape[1:]
    if whole_rows and view.dtype == dtype_of(record.dtype) and is_flat_cpu(view):
        memory = writable_bytes(view)
        return Target(name, low, low + num_rows * row_bytes, lambda: memory, lambda n: None)
    rows = Box((part.offset[0], *chunk.offset[1:]), (num_rows, *chunk.shape[1:])) if chunk.shape else chunk
    stage = _Stage(rows, part, view, dtype_of(record.dtype))
    return Target(name, low, low + num_rows * row_bytes, stage.memory, stage.arrived)


class _Stage:
    """A buffer for whole rows, copied to its destination when the last byte has come."""

    def __init__(self, rows: Box, part: Box, view: Tensor, dtype: torch.dtype) -> None:
        self.rows, self.part, self.view, self.dtype = rows, part, view, dtype
        self.buffer: Tensor | None = None
        self.missing = rows.numel * dtype.itemsize
        self.guard = threading.Lock()

    def memory(self) -> memoryview:
        with self.guard:
            if self.buffer is None:
                self.buffer = torch.empty(self.rows.shape, dtype=self.dtype)
            return writable_bytes(self.buffer)

    def arrived(self, num_bytes: int) -> None:
        with self.guard:
            self.missing -= num_bytes
            if self.missing == 0:
                assert self.buffer is not None
                with torch.no_grad():
                    self.view.copy_(self.rows.view(self.buffer, self.part))
                self.buffer = None


def read_file(
    directory: Directory, name: str, record: FileRecord, targets: list[Target], *, hashed: bool, threads: int = 1
) -> int:
    """Read one file's targets; return the number of bytes read.

    Args:
        hashed: read whole blocks and check them; else only the wanted bytes.

    Raises: CorruptCheckpoint: names file, tensor and offset.
    """
    total = 0
    for layer in _without_overlap(targets):
        with directory.open_read(name) as fd:
            jobs = _jobs(layer, record, hashed)

            def one(job: _Job) -> int:
                return _run(directory, fd, name, record, job)

            size = sum(job.end - job.start for job in jobs)
            if threads > 1 and len(jobs) > 1:
                with ThreadPoolExecutor(threads, thread_name_prefix="ckpt-read") as pool:
                    total += sum(counted(pool.map(one, jobs), "load", size, size=int))
            else:
                total += sum(counted(map(one, jobs), "load", size, size=int))
    return total


def _without_overlap(targets: list[Target]) -> list[list[Target]]:
    """Split targets so that within each list no byte is wanted twice (tied tensors that are no longer tied are)."""
    layers: list[list[Target]] = []
    for target in sorted(targets, key=lambda t: (t.start, t.end)):
        if target.start == target.end:
            continue
        for layer in layers:
            if layer[-1].end <= target.start:
                layer.append(target)
                break
        else:
            layers.append([target])
    return layers


@dataclass
class _Job:
    """A range of the file and the targets in it; ``block`` is the index of the block to check, or None."""

    start: int
    end: int
    targets: list[Target]
    block: int | None


def _jobs(targets: list[Target], record: FileRecord, hashed: bool) -> list[_Job]:
    if not hashed:
        return [_Job(t.start, t.end, [t], None) for t in targets]
    jobs: dict[int, _Job] = {}
    for target in targets:
        for block in range(target.start // BLOCK_BYTES, (target.end - 1) // BLOCK_BYTES + 1):
            start = block * BLOCK_BYTES
            job = jobs.setdefault(block, _Job(start, min(start + BLOCK_BYTES, record.bytes), [], block))
            job.targets.append(target)
    return list(jobs.values())


def _run(directory: Directory, fd: Any, name: str, record: FileRecord, job: _Job) -> int:
    digest = xxhash.xxh3_64() if job.block is not None else None
    source = _Source(directory, fd, name, digest)
    position = job.start
    for target in job.targets:
        low, high = max(target.start, job.start), min(target.end, job.end)
        source.skip(position, low)
        source.fill(target.memory()[low - target.start : high - target.start], low, target.tensor)
        position = high
    if digest is not None:
        source.skip(position, job.end)
        if digest.hexdigest() != record.blocks[job.block or 0]:
            raise CorruptCheckpoint(
                f"{name}: the block at byte {job.start} (tensor {job.targets[0].tensor!r} and its neighbours) "
                "is not what was written. Use an older checkpoint.",
                file=name,
                tensor=job.targets[0].tensor,
                offset=job.start,
            )
    for target in job.targets:
        target.arrived(min(target.end, job.end) - max(target.start, job.start))
    return job.end - job.start


@dataclass
class _Source:
    """An open file; what is read of it is hashed on the way."""

    directory: Directory
    handle: Any
    name: str
    digest: xxhash.xxh3_64 | None

    def skip(self, start: int, end: int) -> None:
        """Hash bytes that nobody wants."""
        if self.digest is None or start >= end:
            return
        size = self.directory.read_bytes
        scratch = memoryview(bytearray(min(size, end - start)))
        for low in range(start, end, size):
            self.fill(scratch[: min(size, end - low)], low, None)

    def fill(self, memory: memoryview, start: int, tensor: str | None) -> None:
        """Read bytes from ``start`` on until ``memory`` is full."""
        size = self.directory.read_bytes
        for low in range(0, len(memory), size):
            part = memory[low : low + size]
            done = 0
            while done < len(part):
                count = self.directory.read_into(self.handle, part[done:], start + low + done)
                if count == 0:
                    self._refuse_end(start + low + done, tensor)
                done += count
            if self.digest is not None:
                self.digest.update(part)

    def _refuse_end(self, offset: int, tensor: str | None) -> None:
        raise CorruptCheckpoint(
            f"{self.name}: ends at byte {offset}; more was written. Use an older checkpoint.",
            file=self.name,
            tensor=tensor,
            offset=offset,
        )

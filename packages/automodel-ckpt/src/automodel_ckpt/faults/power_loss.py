"""What a disk may hold after the power fails: every legal loss of what was not yet made durable.

The model is the weakest that POSIX allows. Bytes of a file are durable once the *file* is fsynced; of those written
since, any subset may be there, the last one torn at a page. Names in a directory are durable once the *directory* is
fsynced; of creations, renames and removals since, any subset may be there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from automodel_ckpt.faults.system import Operation

PAGE_BYTES = 4096


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[bytes, int]] = field(default_factory=list)


@dataclass
class _Folder:
    durable: dict[str, _Node] = field(default_factory=dict)
    current: dict[str, _Node] = field(default_factory=dict)
    pending: list[tuple[str, str, _Node | None]] = field(default_factory=list)
    """Changes since the last fsync: (kind, name, node), where kind is ``set`` or ``drop``."""


_Node = _File | _Folder


class Disk:
    """A file system in memory that knows which part of it is durable."""

    def __init__(self) -> None:
        self.root = _Folder()

    def apply(self, operation: Operation) -> None:
        """Perform one recorded operation."""
        path = operation.paths[0]
        if operation.name == "create":
            self._set(path, _File())
        elif operation.name == "mkdir":
            self._set(path, _Folder())
        elif operation.name == "write":
            node = self._find(path)
            assert isinstance(node, _File)
            node.pending.append((operation.data, operation.offset))
        elif operation.name == "fsync":
            self._sync(self._find(path))
        elif operation.name in ("unlink", "rmdir"):
            self._drop(path)
        elif operation.name == "rename":
            node = self._find(path)
            self._drop(path)
            self._set(operation.paths[1], node)

    def _find(self, path: str) -> _Node:
        node: _Node = self.root
        for part in path.split("/") if path else ():
            assert isinstance(node, _Folder)
            node = node.current[part]
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        folder = self._find(os.path.dirname(path))
        assert isinstance(folder, _Folder)
        return folder, os.path.basename(path)

    def _set(self, path: str, node: _Node) -> None:
        folder, name = self._parent(path)
        folder.current[name] = node
        folder.pending.append(("set", name, node))

    def _drop(self, path: str) -> None:
        folder, name = self._parent(path)
        folder.pending.append(("drop", name, folder.current.pop(name)))

    def _sync(self, node: _Node) -> None:
        if isinstance(node, _File):
            for data, offset in node.pending:
                _write(node.durable, data, offset)
        else:
            node.durable = dict(node.current)
        node.pending.clear()

    def crash(self, target: Path, chance: random.Random) -> None:
        """Write one state that may be found after a power failure at this moment into an empty directory."""
        _materialise(self.root, target, chance)


def _write(content: bytearray, data: bytes, offset: int) -> None:
    if len(content) < offset:
        content.extend(b"\0" * (offset - len(content)))
    content[offset : offset + len(data)] = data


def _materialise(folder: _Folder, target: Path, chance: random.Random) -> None:
    target.mkdir(exist_ok=True)
    names = dict(folder.durable)
    keep = chance.choice((0.0, 0.3, 0.7, 1.0))
    for kind, name, node in folder.pending:
        if chance.random() < keep:
            if kind == "set" and node is not None:
                names[name] = node
            elif names.get(name) is node:
                del names[name]
    for name, node in names.items():
        if isinstance(node, _Folder):
            _materialise(node, target / name, chance)
        else:
            (target / name).write_bytes(_surviving(node, chance))


def _surviving(file: _File, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    keep = chance.choice((0.0, 0.5, 1.0))
    for data, offset in file.pending:
        if chance.random() < keep:
            torn = chance.random() < 0.3
            _write(content, data[: chance.randrange(0, len(data) + 1, PAGE_BYTES) if torn else len(data)], offset)
    return bytes(content)


def crash_states(log: list[Operation], target: Path, *, count: int, seed: int) -> Iterator[tuple[Path, int | None]]:
    """Yield directories in states that a power failure may leave, each with the last acknowledged step.

    Args:
        log: a `Recorder`'s operations.
        target: empty directory to write the states into.
        count: how many, spread evenly over the moments of the log.
    """
    chance = random.Random(seed)
    moments = sorted(chance.randrange(len(log) + 1) for _ in range(count))
    disk, done, acknowledged = Disk(), 0, None
    for index, moment in enumerate(moments):
        for operation in log[done:moment]:
            if operation.name == "acknowledge":
                acknowledged = int(operation.paths[0])
            else:
                disk.apply(operation)
        done = moment
        state = target / f"state-{index:06d}"
        disk.crash(state, chance)
        yield state, acknowledged

"""Stand-ins for the ``os`` module that count, record, fail, shorten or end the system calls of a save."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from automodel_ckpt.directory import LocalDirectory

CHANGES = ("mkdir", "open", "pwrite", "posix_fallocate", "fsync", "rename", "unlink", "rmdir", "close")


class CountingSystem:
    """``os`` with a call before each operation that changes the disk.

    Args:
        before: called with ``(index, operation, arguments)`` before the index-th operation, counted from 0; what it
            raises is raised, what it returns (unless None) is returned in place of the operation's result.
    """

    def __init__(self, before: Callable[[int, str, tuple], Any] = lambda index, name, arguments: None) -> None:
        self.before = before
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in CHANGES:
            return function

        def call(*arguments: Any) -> Any:
            index, self.count = self.count, self.count + 1
            replaced = self.before(index, name, arguments)
            return function(*arguments) if replaced is None else replaced

        return call


def end_at(index: int) -> CountingSystem:
    """The process ends, as by SIGKILL, just before operation ``index``."""

    def before(i: int, name: str, arguments: tuple) -> None:
        if i == index:
            os._exit(137)

    return CountingSystem(before)


def fail_at(index: int, code: int = errno.ENOSPC) -> CountingSystem:
    """Operation ``index`` fails once with an errno; closing never does."""

    def before(i: int, name: str, arguments: tuple) -> None:
        if i == index and name != "close":
            raise _error(code, arguments)

    return CountingSystem(before)


def _error(code: int, arguments: tuple) -> OSError:
    """The error as the system raises it: with the path, where the call was given one."""
    path = arguments[0] if arguments and not isinstance(arguments[0], int) else None
    return OSError(code, os.strerror(code), None if path is None else str(path))


def fail_from(index: int, code: int = errno.ENOSPC) -> CountingSystem:
    """Every write, reservation, new file and fsync from ``index`` on fails, as on a full or dying disk."""

    def before(i: int, name: str, arguments: tuple) -> None:
        if i >= index and name in ("pwrite", "posix_fallocate", "fsync", "mkdir", "open"):
            raise _error(code, arguments)

    return CountingSystem(before)


def short_writes(limit: int = 7) -> CountingSystem:
    """Each write takes at most ``limit`` bytes, and every fifth takes none."""

    def before(i: int, name: str, arguments: tuple) -> Any:
        if name != "pwrite":
            return None
        fd, data, offset = arguments
        return 0 if i % 5 == 0 else os.pwrite(fd, data[:limit], offset)

    return CountingSystem(before)


@dataclass(frozen=True)
class Operation:
    """One recorded operation. ``paths`` are relative to the root; ``data`` and ``offset`` belong to writes."""

    name: str
    paths: tuple[str, ...]
    data: bytes = b""
    offset: int = 0


class Recorder:
    """Records every operation below a directory, for `automodel_ckpt.faults.power_loss`."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = os.path.abspath(root)
        self.log: list[Operation] = []
        self._open: dict[int, str] = {}

    def directory(self) -> LocalDirectory:
        return LocalDirectory(self.root, system=self)

    def acknowledge(self, step: int) -> None:
        """A save has returned: from here on this step must survive."""
        self.log.append(Operation("acknowledge", (str(step),)))

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in CHANGES:
            return function

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            self._note(name, arguments, result)
            return result

        return call

    def _note(self, name: str, arguments: tuple, result: Any) -> None:
        if name == "open":
            self._open[result] = self._relative(arguments[0])
            if arguments[1] & os.O_CREAT:
                self.log.append(Operation("create", (self._open[result],)))
        elif name == "close":
            self._open.pop(arguments[0], None)
        elif name == "pwrite":
            path = self._open[arguments[0]]
            self.log.append(Operation("write", (path,), bytes(arguments[1][:result]), arguments[2]))
        elif name == "fsync":
            self.log.append(Operation("fsync", (self._open[arguments[0]],)))
        elif name in ("mkdir", "rename", "unlink", "rmdir"):
            count = 2 if name == "rename" else 1
            self.log.append(Operation(name, tuple(self._relative(path) for path in arguments[:count])))

    def _relative(self, path: Any) -> str:
        relative = os.path.relpath(os.path.abspath(path), self.root)
        return "" if relative == "." else relative

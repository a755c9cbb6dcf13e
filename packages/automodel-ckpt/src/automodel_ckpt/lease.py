"""One writer per directory: a lock that dies with its process, and a heartbeat where locks do not reach.

On one machine the kernel's record lock decides: it is gone the moment its process is, however that ended, and
forked children do not inherit it. File systems that do not share locks between machines show a foreign holder's
heartbeat instead, which is watched on our own clock, so that clock skew does not matter.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from automodel_ckpt import layout
from automodel_ckpt.errors import LeaseHeld
from automodel_ckpt.heartbeat import BEAT_S, WATCH_S, describe, wait_for_silence

logger = logging.getLogger(__name__)


@dataclass
class Lease:
    """The right of this process to write below ``root`` until it ends or calls `release`."""

    root: Path
    run_id: str
    fd: int
    pid: int
    _stop: threading.Event = field(default_factory=threading.Event)
    _beats: int = 0

    def beat(self) -> None:
        """Write a new heartbeat."""
        self._beats += 1
        text = json.dumps(
            {
                "run_id": self.run_id,
                "host": socket.gethostname(),
                "pid": self.pid,
                "boot_id": _boot_id(),
                "beat": self._beats,
                "time": time.time(),
            }
        ).encode()
        os.pwrite(self.fd, text + b"\n", 0)
        os.ftruncate(self.fd, len(text) + 1)

    def keep_beating(self) -> None:
        threading.Thread(target=self._beat_forever, name="ckpt-lease", daemon=True).start()

    def _beat_forever(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except OSError as error:
                logger.warning("the lease of %s cannot be renewed: %s", self.root, error)

    def release(self) -> None:
        """Give the directory up."""
        self._stop.set()
        if _held.pop(self.root, None) is not None and os.getpid() == self.pid:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, 0)
            os.close(self.fd)


_held: dict[Path, Lease] = {}
_guard = threading.Lock()


def acquire(root: str | os.PathLike, *, takeover: bool = False) -> Lease:
    """Take the lease of a directory, or return the one that this process holds.

    Args:
        takeover: ignore the heartbeat of a holder on another machine.

    Raises: LeaseHeld: another live process has it.
    """
    root = Path(root).resolve()
    with _guard:
        lease = _held.get(root)
        if lease is not None and lease.pid == os.getpid():
            return lease
        lease = _take(root, takeover)
        _held[root] = lease
        return lease


def _take(root: Path, takeover: bool) -> Lease:
    root.mkdir(parents=True, exist_ok=True)
    path = root / layout.LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        _lock(fd, path)
        holder = _holder(fd)
        if holder and holder["host"] != socket.gethostname() and not takeover:
            _watch(fd, holder, path)
        lease = Lease(root, secrets.token_hex(4), fd, os.getpid())
        lease.beat()
    except BaseException:
        os.close(fd)
        raise
    lease.keep_beating()
    return lease


def _lock(fd: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _held_error(_holder(fd), path) from error
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.warning("%s: this file system has no locks; the heartbeat alone keeps two runs apart", path)


def _watch(fd: int, holder: dict, path: Path) -> None:
    """Wait until the holder on another machine has shown no heartbeat for `WATCH_S`."""
    wait_for_silence(path, holder, lambda: _holder(fd), lambda it: _held_error(it, path), watch_s=WATCH_S, every_s=0.2)


def _holder(fd: int) -> dict | None:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        return holder if isinstance(holder, dict) and "host" in holder else None
    except ValueError:
        return None


def _held_error(holder: dict | None, path: Path) -> LeaseHeld:
    return LeaseHeld(
        f"{path.parent} is being written by {describe(holder)}; one run at a time may write a directory. "
        "Stop that run, or choose another checkpoint directory."
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def release(root: str | os.PathLike) -> None:
    """Give up the lease of a directory, if this process has it."""
    lease = _held.get(Path(root).resolve())
    if lease is not None:
        lease.release()


@atexit.register
def _release_all() -> None:
    for lease in list(_held.values()):
        if lease.pid == os.getpid():
            lease.release()

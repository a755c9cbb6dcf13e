"""One writer per prefix of an object store: an object with a heartbeat, taken with a conditional write.

There are no locks that die with their process. A foreign holder counts as alive while its heartbeat changes, watched on
our own clock; one on this machine whose process is gone counts as dead at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any

from automodel_ckpt import layout
from automodel_ckpt.errors import LeaseHeld
from automodel_ckpt.heartbeat import BEAT_S, WATCH_S, describe, wait_for_silence

logger = logging.getLogger(__name__)

SETTLE_S = 1.0
"""After the lease of a dead holder is taken: how long a rival that saw the same has to show itself."""


class ObjectLease:
    """The right of this process to write below a prefix until it ends or calls `release`."""

    def __init__(self, store: Any) -> None:
        self.store, self.pid, self.run_id = store, os.getpid(), secrets.token_hex(4)
        self._stop, self._beats = threading.Event(), 0

    def text(self) -> bytes:
        """The content of the lock object, different at every call."""
        self._beats += 1
        holder = {"run_id": self.run_id, "host": socket.gethostname(), "pid": self.pid, "beat": self._beats}
        return json.dumps(holder).encode()

    def keep_beating(self) -> None:
        threading.Thread(target=self._beat_forever, name="ckpt-lease", daemon=True).start()

    def _beat_forever(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if self.is_ours():
                    self.store.write_file(layout.LOCK, self.text())
            except Exception as error:  # noqa: BLE001 - clients of stores raise what they like; the thread goes on
                logger.warning("the lease of %s cannot be renewed: %s", self.store, error)

    def is_ours(self) -> bool:
        """Whether nobody has taken the lease over."""
        holder = read_holder(self.store)
        return holder is not None and holder.get("run_id") == self.run_id

    def release(self) -> None:
        """Give the prefix up."""
        self._stop.set()
        _held.pop(self.store.url, None)
        if os.getpid() == self.pid and self.is_ours():
            self.store.fs.rm_file(self.store.key(layout.LOCK))


_held: dict[str, ObjectLease] = {}
_guard = threading.Lock()


def acquire(store: Any, *, takeover: bool = False) -> ObjectLease:
    """Take the lease of a store's prefix, or return the one that this process holds.

    Raises: LeaseHeld: another live process has it, or has taken it over.
    """
    with _guard:
        lease = _held.get(store.url)
        if lease is not None and lease.pid == os.getpid():
            if not lease.is_ours():
                raise _held_error(store, read_holder(store))
            return lease
        lease = _take(store, takeover)
        _held[store.url] = lease
        return lease


def _take(store: Any, takeover: bool) -> ObjectLease:
    lease = ObjectLease(store)
    try:
        store.fs.pipe_file(store.key(layout.LOCK), lease.text(), mode="create")
    except FileExistsError:
        holder = read_holder(store)
        if holder is not None and not takeover and not _is_dead_here(holder):
            _watch(store, holder)
        store.write_file(layout.LOCK, lease.text())
        time.sleep(SETTLE_S)
        if not lease.is_ours():
            raise _held_error(store, read_holder(store)) from None
    lease.keep_beating()
    return lease


def _is_dead_here(holder: dict) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    if holder.get("host") != socket.gethostname() or type(holder.get("pid")) is not int:
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _watch(store: Any, holder: dict) -> None:
    """Wait until the holder has shown no heartbeat for `WATCH_S`."""
    wait_for_silence(
        store,
        holder,
        lambda: read_holder(store),
        lambda it: _held_error(store, it),
        watch_s=WATCH_S,
        every_s=min(0.5, WATCH_S / 10),
    )


def read_holder(store: Any) -> dict | None:
    """Who has the lease, or None."""
    try:
        holder = json.loads(store.read(layout.LOCK, limit=4096))
    except (FileNotFoundError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _held_error(store: Any, holder: dict | None) -> LeaseHeld:
    return LeaseHeld(
        f"{store} is being written by {describe(holder)}; one run at a time may write a prefix. "
        "Stop that run, or choose another prefix."
    )


def release(store: Any) -> None:
    """Give up the lease of a prefix, if this process has it."""
    lease = _held.get(store.url)
    if lease is not None:
        lease.release()


@atexit.register
def _release_all() -> None:
    for lease in list(_held.values()):
        if lease.pid == os.getpid():
            with contextlib.suppress(Exception):
                lease.release()

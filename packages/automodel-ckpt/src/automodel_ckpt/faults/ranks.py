"""Process groups of forked ranks: torch is imported once, in the parent, so that thousands of groups are cheap."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What a wrapped model imports on first use; seconds per process unless the parent has done it.
_PRELOAD = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.optim")


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Ranks:
    """Forked children ``0 .. n - 1``, each running ``work(rank)`` in a gloo group of their own."""

    pids: list[int]
    folder: tempfile.TemporaryDirectory = field(repr=False)
    statuses: dict[int, int] = field(default_factory=dict)

    def kill(self, ranks: list[int]) -> None:
        """SIGKILL some of them."""
        for rank in ranks:
            if rank not in self.statuses:
                os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for all to end; False if some are alive at the deadline, and then they are killed.

        Time in which this process itself was not run, though it wanted to, does not count: on a machine with more
        work than processors that is no fault of the ranks.
        """
        waited, last = 0.0, time.monotonic()
        while len(self.statuses) < len(self.pids):
            self._reap()
            if waited > timeout_s:
                self.kill(list(range(len(self.pids))))
                return False
            time.sleep(0.002)
            now = time.monotonic()
            waited, last = waited + min(now - last, 0.02), now
        return True

    def _reap(self) -> None:
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)

    def errors(self) -> str:
        """Tracebacks of the ranks that raised."""
        found = []
        for rank in range(len(self.pids)):
            path = os.path.join(self.folder.name, f"error-{rank}")
            if os.path.exists(path):
                with open(path) as file:
                    found.append(f"rank {rank}:\n{file.read()}")
        return "\n".join(found)


def preload() -> None:
    """Import what the ranks need, in the process that they are forked from."""
    for module in _PRELOAD:
        importlib.import_module(module)


def start(world_size: int, work: Callable[[int], Any], *, timeout_s: float = 60.0) -> Ranks:
    """Fork ranks that run ``work`` inside an initialised process group (none for a single rank)."""
    preload()
    folder = tempfile.TemporaryDirectory(prefix="ckpt-ranks-")
    port = free_port()
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            os._exit(_child(rank, world_size, port, work, folder.name, timeout_s))
        pids.append(pid)
    return Ranks(pids, folder)


def run(world_size: int, work: Callable[[int], Any], *, timeout_s: float = 60.0) -> None:
    """Run ``work`` on forked ranks to the end.

    Raises: RuntimeError: with the tracebacks of the ranks that failed.
    """
    ranks = start(world_size, work, timeout_s=timeout_s)
    finished = ranks.wait(timeout_s)
    if not finished or any(ranks.statuses.values()):
        raise RuntimeError(f"ranks ended with {ranks.statuses}, in time: {finished}\n{ranks.errors()}")


def _child(rank: int, world_size: int, port: int, work: Callable[[int], Any], folder: str, timeout_s: float) -> int:
    try:
        if world_size > 1:
            _join(rank, world_size, port, timeout_s)
        work(rank)
        return 0
    except BaseException:  # noqa: BLE001 - the child's only way to tell its parent
        with open(os.path.join(folder, f"error-{rank}"), "w") as file:
            traceback.print_exc(file=file)
        return 1


def _join(rank: int, world_size: int, port: int, timeout_s: float) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, world_size, is_master=rank == 0, timeout=timedelta(seconds=timeout_s))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))

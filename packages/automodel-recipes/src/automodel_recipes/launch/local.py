"""Several processes on one machine. Unlike torchrun, this launcher lets a checkpoint finish before it ends anything.

torchrun kills its children 30 seconds after SIGTERM and ignores SIGUSR1. Here a signal is handed on, once, and the
children decide how long their save takes. A child that fails ends the others.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from automodel_recipes.interrupt import STOP_SIGNALS

_POLL_S = 0.05
_GRACE_S = 5.0
"""How long ranks may go on after one has failed: enough to print why, too little to wait for a dead peer."""
_PARENT = "AUTOMODEL_LAUNCHER_PID"


def under_launcher() -> bool:
    """Whether this process is already one of several that a launcher (torchrun, Slurm) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(frozen=True)
class Machine:
    """This machine among those of a run that no scheduler started; they meet at number 0."""

    rank: int = 0
    count: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    """0 lets the system choose, which is possible on one machine."""


def launch(argv: Sequence[str], nproc_per_node: int, *, machine: Machine | None = None) -> int:
    """Run ``python -m automodel_recipes ARGV`` in ``nproc_per_node`` processes and wait for them.

    Arguments are passed as a list, never through a shell, so that paths may hold spaces. SIGINT, SIGTERM and SIGUSR1
    are handed on to every process.

    Args:
        argv: arguments of the command, e.g. ``["train", "my config.yaml"]``.
        nproc_per_node: processes to start here.
        machine: which of several machines this is; each of them calls this.

    Returns: 0, or the exit code of the first process that failed (128 + the signal's number for one that was killed).
    """
    machine = machine or Machine()
    with _meeting_point(machine) as environment:
        children: list[subprocess.Popen] = []
        with _hand_on_signals(children):
            for rank in range(nproc_per_node):
                children.append(_start(argv, rank, nproc_per_node, machine, environment))
            return _wait(children)


@contextlib.contextmanager
def _meeting_point(machine: Machine) -> Iterator[dict[str, str]]:
    """Serve the store that the ranks meet at; on one machine the system chooses a port that nobody else can take."""
    import torch.distributed as dist

    store, port = None, machine.master_port
    if machine.rank == 0:
        store = dist.TCPStore(machine.master_addr, port, is_master=True, wait_for_workers=False)
        port = store.port
    yield {
        "MASTER_ADDR": machine.master_addr,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        _PARENT: str(os.getpid()),
    }
    del store  # it has to live until every rank has ended


def _start(
    argv: Sequence[str], rank: int, size: int, machine: Machine, environment: dict[str, str]
) -> subprocess.Popen:
    ranks = {
        "RANK": machine.rank * size + rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": machine.count * size,
        "LOCAL_WORLD_SIZE": size,
        "GROUP_RANK": machine.rank,
    }
    threads = str(max(1, (os.cpu_count() or 1) // size))
    return subprocess.Popen(
        [sys.executable, "-m", "automodel_recipes", *argv],
        env={"OMP_NUM_THREADS": threads, **os.environ, **environment, **{k: str(v) for k, v in ranks.items()}},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which hands it on once
    )


@contextlib.contextmanager
def _hand_on_signals(children: list[subprocess.Popen]) -> Iterator[None]:
    def hand_on(number: int, _frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {}
    try:
        for number in STOP_SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread
                previous[number] = signal.signal(number, hand_on)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _end(children)


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """Wait for all. The first failure gives the others a moment and ends them; ranks that save are not rushed."""
    ended: dict[int, int] = {}  # rank -> code, in the order of ending
    deadline = float("inf")
    while len(ended) < len(children):
        ended |= {rank: c.returncode for rank, c in enumerate(children) if rank not in ended and c.poll() is not None}
        if deadline == float("inf") and any(code and not _is_stop(code) for code in ended.values()):
            deadline = time.monotonic() + _GRACE_S
        if time.monotonic() > deadline:
            _end(children)
        time.sleep(_POLL_S)
    failed = sorted(((rank, code) for rank, code in ended.items() if code), key=lambda item: _is_stop(item[1]))
    if not failed:
        return 0
    rank, code = failed[0]
    code = code if code >= 0 else 128 - code
    sys.stderr.write(f"rank {rank} ended with exit code {code}; its message stands above.\n")
    return code


def _is_stop(code: int) -> bool:
    return code in [128 + number for number in STOP_SIGNALS]


def _end(children: Sequence[subprocess.Popen]) -> None:
    """Kill what still runs; a rank that waits in a collective for a dead peer hears no gentler signal."""
    for child in children:
        if child.poll() is None:
            child.kill()
    for child in children:
        child.wait()


def end_with_launcher() -> None:
    """In a child: have the kernel send SIGTERM when the launcher dies, so that no rank is left behind (Linux)."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)

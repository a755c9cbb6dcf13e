"""Start and stop the process group: backend by device, a preflight that names missing ranks, a clean end."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from automodel_parallel.rendezvous import ProcessEnv, connect_store, wait_for_all_ranks

logger = logging.getLogger(__name__)

_BACKENDS = {
    # Collectives on host tensors (flags, checkpoint plans) need gloo beside the device's own backend.
    "cuda": "cpu:gloo,cuda:nccl",
    "xpu": "cpu:gloo,xpu:xccl",
    "cpu": "gloo",
}
_LOCK_FOR_WORKERS_S = 0.05
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class DistInfo:
    """Where this process stands."""

    rank: int
    """Global rank, 0 .. world_size - 1."""
    local_rank: int
    """Rank on this machine: the index of the accelerator that the process uses."""
    world_size: int
    """Number of processes in the run."""
    device: torch.device
    """Device of parameters and batches, with an index for accelerators."""
    backend: str | None
    """Backend of the process group; None where a single process runs without one."""
    is_main: bool
    """True on global rank 0."""


def init_distributed(
    backend: str | None = None,
    device: str = "auto",
    timeout_minutes: float = 10,
    *,
    rendezvous_timeout_s: float = 30,
) -> DistInfo:
    """Join the process group that torchrun or Slurm describes in the environment, or stand alone.

    Args:
        backend: ``gloo``, ``nccl``, or torch's ``cpu:gloo,cuda:nccl`` form. None: gloo on CPU, and on accelerators
            their own backend together with gloo for host tensors.
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` or ``xpu``. ``auto`` takes the first accelerator found.
        timeout_minutes: limit of every later collective.
        rendezvous_timeout_s: how long to wait for all ranks to show up before the missing ones are named.

    Returns: this process's place. Calling again in a process that has joined returns the same facts.
    Raises:
        ValueError: an unknown device, a device that this machine lacks, or an unusable environment.
        RuntimeError: ranks missing at the rendezvous (their numbers are in the message).
    """
    env = ProcessEnv.from_environ(os.environ)
    torch_device = resolve_device(device, local_rank=env.local_rank, world_size=env.world_size)
    if timeout_minutes <= 0:
        raise ValueError(f"timeout_minutes={timeout_minutes}: it must be > 0. Set the minutes a collective may take.")
    if env.world_size > 1 and not dist.is_initialized():
        _join(env, backend or _BACKENDS[torch_device.type], torch_device, timeout_minutes, rendezvous_timeout_s)
    return DistInfo(
        rank=env.rank,
        local_rank=env.local_rank,
        world_size=env.world_size,
        device=torch_device,
        backend=str(dist.get_backend()) if dist.is_initialized() else None,
        is_main=env.rank == 0,
    )


def ensure_process_group(info: DistInfo) -> None:
    """Give a single process a process group of its own, which meshes and FSDP2 need even at world size 1."""
    if dist.is_initialized():
        return
    if info.world_size > 1:
        raise RuntimeError(
            f"world size {info.world_size} without a process group: call init_distributed() before setup()."
        )
    backend = _BACKENDS.get(info.device.type, "gloo")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def shutdown() -> None:
    """Leave the process group, if there is one. Safe to call twice, and after an error.

    Gloo's worker threads drop the tensors of the last collectives after those have returned, and need the
    interpreter's lock for it. Before Python 3.14 a thread that still waits for the lock when the interpreter is torn
    down aborts the process, so the lock is left to them for a moment.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(_LOCK_FOR_WORKERS_S)


def resolve_device(device: str, *, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The ``torch.device`` that a device name means for this process.

    Raises: ValueError: an unknown name, a device that is absent, or a local rank beyond the machine's accelerators.
    """
    if device not in _DEVICES:
        raise ValueError(
            f"device={device!r}: it must be one of {', '.join(_DEVICES)}. Use 'auto' to take what is there."
        )
    if device == "auto":
        device = _first_available(world_size)
    if device == "cpu":
        return torch.device("cpu")
    if device == "mps":
        return _mps(world_size)
    module = getattr(torch, device)
    if not module.is_available():
        raise ValueError(f"device={device!r}: this machine offers none. Set device to 'cpu' or 'auto'.")
    if local_rank >= module.device_count():
        raise ValueError(
            f"local rank {local_rank} on a machine with {module.device_count()} {device} devices: start at most that "
            "many processes per machine, or set device to 'cpu'."
        )
    return torch.device(device, local_rank)


def _first_available(world_size: int) -> str:
    for name in ("cuda", "xpu"):
        if getattr(torch, name).is_available():
            return name
    # MPS has no collectives: several processes on a Mac run on its CPU.
    return "mps" if world_size == 1 and torch.backends.mps.is_available() else "cpu"


def _mps(world_size: int) -> torch.device:
    if not torch.backends.mps.is_available():
        raise ValueError("device='mps': this machine offers none. Set device to 'cpu' or 'auto'.")
    if world_size > 1:
        raise ValueError(
            f"device='mps' with {world_size} processes: MPS has no collectives. Use one process, or 'cpu'."
        )
    return torch.device("mps")


def _join(
    env: ProcessEnv, backend: str, device: torch.device, timeout_minutes: float, rendezvous_timeout_s: float
) -> None:
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).set_device(device)
    store = connect_store(env, timeout_s=rendezvous_timeout_s)
    wait_for_all_ranks(store, env, timeout_s=rendezvous_timeout_s)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("automodel", store),
        rank=env.rank,
        world_size=env.world_size,
        timeout=timedelta(minutes=timeout_minutes),
        device_id=device if device.type == "cuda" else None,
    )
    logger.debug("rank %d of %d joined over %s", env.rank, env.world_size, backend)

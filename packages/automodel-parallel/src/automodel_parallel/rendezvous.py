"""Who takes part: ranks from torchrun's or Slurm's environment, and a preflight that names who is missing."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

_POLL_S = 0.05


@dataclass(frozen=True)
class ProcessEnv:
    """Rank, size and meeting point as the launcher states them."""

    rank: int
    local_rank: int
    world_size: int
    master_addr: str | None
    master_port: int | None
    agent_store: bool
    """True when torchrun's agent already serves the store at the meeting point."""
    restart: str
    """torchrun's restart count: ranks of an earlier attempt must not count as present."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ProcessEnv:
        """Read torchrun's variables, else Slurm's, else a lone process.

        Raises: ValueError: only part of torchrun's variables is set, or one is not a number.
        """
        if "RANK" in environ or "WORLD_SIZE" in environ:
            return _from_torchrun(environ)
        if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ:
            return _from_slurm(environ)
        return cls(0, 0, 1, None, None, agent_store=False, restart="0")


def connect_store(env: ProcessEnv, *, timeout_s: float) -> dist.Store:
    """Connect to the key-value store at the meeting point (rank 0 serves it where no torchrun agent does).

    Raises: RuntimeError: the meeting point cannot be reached in time.
    """
    serves = env.rank == 0 and not env.agent_store
    try:
        return dist.TCPStore(
            host_name=env.master_addr or "127.0.0.1",
            port=env.master_port or 29500,
            world_size=env.world_size,
            is_master=serves,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, RuntimeError) as error:
        where = f"{env.master_addr}:{env.master_port}"
        if serves:
            message = f"rank 0 cannot listen at {where}: choose a free MASTER_PORT."
        else:
            message = (
                f"rank {env.rank} cannot reach rank 0 at {where} within {timeout_s:g} s: rank 0 is missing, or a "
                "firewall is in between. Check that it was started, and MASTER_ADDR and MASTER_PORT."
            )
        raise RuntimeError(message) from error


def wait_for_all_ranks(store: dist.Store, env: ProcessEnv, *, timeout_s: float) -> None:
    """Return when every rank has shown up.

    Raises: RuntimeError: after ``timeout_s``; the message lists the missing ranks and where the others run.
    """
    roll = dist.PrefixStore(f"automodel-preflight-{env.restart}", store)
    roll.set(str(env.rank), socket.gethostname())
    deadline = time.monotonic() + timeout_s
    missing = list(range(env.world_size))
    while missing := [rank for rank in missing if not roll.check([str(rank)])]:
        if time.monotonic() > deadline:
            raise RuntimeError(_missing_message(roll, env, missing, timeout_s))
        time.sleep(_POLL_S)


def _missing_message(roll: dist.Store, env: ProcessEnv, missing: list[int], timeout_s: float) -> str:
    present = [rank for rank in range(env.world_size) if rank not in missing]
    hosts = sorted({roll.get(str(rank)).decode() for rank in present})
    names = ", ".join(map(str, missing))
    return (
        f"rank {names} of {env.world_size} missing at the rendezvous after {timeout_s:g} s (present: "
        f"{', '.join(map(str, present))} on {', '.join(hosts)}). Check that those processes were started; if they are "
        "only slow, raise rendezvous_timeout_s."
    )


def _from_torchrun(environ: Mapping[str, str]) -> ProcessEnv:
    absent = [name for name in ("RANK", "WORLD_SIZE") if name not in environ]
    world_size = int(environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        absent += [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if absent:
        raise ValueError(
            f"the environment lacks {', '.join(absent)}: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT belong "
            "together. Start with torchrun, or set all of them."
        )
    rank = int(environ["RANK"])
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} with WORLD_SIZE={world_size}: ranks run from 0 to WORLD_SIZE - 1.")
    return ProcessEnv(
        rank=rank,
        local_rank=int(environ.get("LOCAL_RANK", rank)),
        world_size=world_size,
        master_addr=environ.get("MASTER_ADDR"),
        master_port=int(environ["MASTER_PORT"]) if "MASTER_PORT" in environ else None,
        agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restart=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _from_slurm(environ: Mapping[str, str]) -> ProcessEnv:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
    job = int(environ.get("SLURM_JOB_ID", "0"))
    return ProcessEnv(
        rank=int(environ["SLURM_PROCID"]),
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        world_size=int(environ["SLURM_NTASKS"]),
        master_addr=environ.get("MASTER_ADDR") or first_host(nodes),
        # Two jobs on one node must not meet: the port follows the job number.
        master_port=int(environ.get("MASTER_PORT", 20000 + job % 20000)),
        agent_store=False,
        restart=environ.get("SLURM_RESTART_COUNT", "0"),
    )


def first_host(nodelist: str) -> str:
    """First host of Slurm's compressed node list: ``gpu[007-010,12],login`` -> ``gpu007``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodelist)
    if match is None:
        raise ValueError(f"node list {nodelist!r} names no host. Set MASTER_ADDR.")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + (suffix or "")

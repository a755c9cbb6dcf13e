"""Joining, naming missing ranks, leaving; devices and user mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from automodel_parallel.init import DistInfo, init_distributed, resolve_device, shutdown
from automodel_parallel.rendezvous import ProcessEnv, first_host


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    info = init_distributed(device="cpu")
    assert info == DistInfo(0, 0, 1, torch.device("cpu"), None, True)
    assert not torch.distributed.is_initialized()
    shutdown()
    shutdown()


def test_ranks_learn_their_place(ranks) -> None:
    infos = ranks.run(_facts, 2)
    assert [(info.rank, info.world_size, info.is_main, info.backend) for info in infos] == [
        (0, 2, True, "gloo"),
        (1, 2, False, "gloo"),
    ]


def _facts(info: DistInfo) -> DistInfo:
    return init_distributed(device="cpu")  # the second call in a process that has joined


def _start(rank: int, world_size: int, port: int, code: str) -> subprocess.Popen[str]:
    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)


def test_missing_rank_is_named(free_port) -> None:
    code = "from automodel_parallel import init_distributed; init_distributed(device='cpu', rendezvous_timeout_s=4)"
    processes = [_start(rank, 3, free_port, code) for rank in (0, 2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert all(process.returncode != 0 for process in processes)
    assert "rank 1 of 3 missing at the rendezvous after 4 s (present: 0, 2 on " in errors[0]
    assert "Check that those processes were started" in errors[0]


def test_missing_rank_zero_is_named(free_port) -> None:
    code = "from automodel_parallel import init_distributed; init_distributed(device='cpu', rendezvous_timeout_s=2)"
    process = _start(1, 2, free_port, code)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert f"rank 1 cannot reach rank 0 at 127.0.0.1:{free_port} within 2 s: rank 0 is missing" in error


def test_peer_death_ends_every_rank(free_port) -> None:
    code = """
import os, torch, torch.distributed as dist
from automodel_parallel import init_distributed
info = init_distributed(device="cpu", timeout_minutes=0.25)
dist.all_reduce(torch.ones(1))
if info.rank == 1:
    os._exit(9)
dist.all_reduce(torch.ones(1))
"""
    started = time.monotonic()
    processes = [_start(rank, 2, free_port, code) for rank in (0, 1)]
    for process in processes:
        process.communicate(timeout=60)
    assert processes[1].returncode == 9
    assert processes[0].returncode not in (0, None), time.monotonic() - started


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: resolve_device("gpu"), "device='gpu': it must be one of auto, cpu, cuda, mps, xpu"),
        (lambda: init_distributed(device="cpu", timeout_minutes=0), "timeout_minutes=0: it must be > 0"),
        (lambda: ProcessEnv.from_environ({"RANK": "0"}), "the environment lacks WORLD_SIZE"),
        (lambda: ProcessEnv.from_environ({"RANK": "0", "WORLD_SIZE": "2"}), "lacks MASTER_ADDR, MASTER_PORT"),
        (
            lambda: ProcessEnv.from_environ(
                {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            ),
            "RANK=2 with WORLD_SIZE=2",
        ),
    ],
)
def test_user_mistakes(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_accelerator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device='cuda': this machine offers none. Set device to 'cpu' or 'auto'"):
        resolve_device("cuda")


def test_slurm_variables() -> None:
    env = ProcessEnv.from_environ(
        {
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "9",
            "SLURM_LOCALID": "1",
            "SLURM_JOB_ID": "123456",
            "SLURM_STEP_NODELIST": "gpu[007-008]",
        }
    )
    assert (env.rank, env.local_rank, env.world_size, env.master_addr) == (9, 1, 16, "gpu007")
    assert 20000 <= env.master_port < 40000


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("node1", "node1"), ("a1,a2", "a1"), ("gpu[007-010,12],login", "gpu007"), ("r[1-2]-ib,x", "r1-ib")],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host

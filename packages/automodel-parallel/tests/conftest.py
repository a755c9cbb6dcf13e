"""Ranks for tests: forked from a parent that has imported torch and transformers once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

_PRELOAD = ["torch", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "automodel_parallel.build"]


class Ranks:
    """Runs a function on ``world_size`` gloo processes and returns what each returned."""

    def __init__(self) -> None:
        # Importing torch and transformers takes seconds: the fork server does it once for all ranks of all tests.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)

    def run(self, function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
        port = _free_port()
        results = self._context.Queue()
        ranks = [
            self._context.Process(
                target=_rank_main, args=(function, rank, world_size, port, results, args), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            return self._collect(results, world_size, timeout_s)
        finally:
            for process in ranks:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()

    @staticmethod
    def _collect(results: Any, world_size: int, timeout_s: float) -> list[Any]:
        values: dict[int, Any] = {}
        while len(values) < world_size:
            rank, value, error = results.get(timeout=timeout_s)
            if error is not None:
                raise AssertionError(f"rank {rank} failed:\n{error}")
            values[rank] = value
        return [values[rank] for rank in range(world_size)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank_main(function: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, args: Any) -> None:
    import torch

    from automodel_parallel.init import init_distributed, shutdown

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        info = init_distributed(device="cpu", timeout_minutes=1)
        results.put((rank, function(info, *args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        shutdown()


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    return Ranks()


@pytest.fixture
def free_port() -> int:
    return _free_port()

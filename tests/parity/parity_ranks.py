"""One group of gloo processes per world size that runs all of its cells."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Iterator
from typing import Any

from parity_cells import Cell, Trained

_PRELOAD = [
    "torch",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "automodel_parallel.build",
    "automodel_core.loss",
    "automodel_core.peft",
]


def run_cells(
    world_size: int, cells: list[Cell], *, timeout_s: float = 120
) -> Iterator[tuple[Cell, list[Trained] | str]]:
    """Yield each cell with what its ranks trained, or with the traceback of the rank that failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    # A queue for each rank: one that is done early must not be taken for another.
    queues, port = [context.Queue() for _ in range(world_size)], _free_port()
    ranks = [
        context.Process(target=_rank_main, args=(rank, world_size, port, cells, queues[rank]), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        for cell in cells:
            answers = [pickle.loads(queue.get(timeout=timeout_s)) for queue in queues]
            errors = [answer for answer in answers if isinstance(answer, str)]
            yield cell, errors[0] if errors else answers
            if errors:  # the other ranks may wait in a collective: this group is of no further use
                return
    finally:
        for process in ranks:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


def _rank_main(rank: int, world_size: int, port: int, cells: list[Cell], results: Any) -> None:
    import torch
    from parity_cells import mutated, train_parallel

    from automodel_parallel import init_distributed, shutdown

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        info = init_distributed(device="cpu", timeout_minutes=1)
        for cell in cells:
            with mutated(cell.mutation):
                run = train_parallel(cell, info)
            results.put(_as_bytes(run))
    except BaseException:
        results.put(_as_bytes(traceback.format_exc()))
    finally:
        shutdown()


def _as_bytes(answer: Any) -> bytes:
    # A queue would pass tensors as handles to shared memory, which end with the process that made them.
    return pickle.dumps(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

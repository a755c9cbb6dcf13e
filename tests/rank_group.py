"""One group of gloo processes that works through a list of items: starting it costs seconds, an item little."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from queue import Empty
from typing import Any

_PRELOAD = [
    "torch",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "automodel_parallel.build",
    "automodel_core.loss",
    "automodel_core.peft",
]


def run_in_group(
    world_size: int, function: Callable[[Any, Any], Any], items: Sequence[Any], *, timeout_s: float = 120
) -> Iterator[tuple[Any, list[Any] | str]]:
    """Yield each item with what ``function(item, dist_info)`` returned on each rank, or with a failed rank's traceback.

    Args:
        function: importable by name in another process.
        items: run in this order, by the same processes; what one leaves behind the next one finds, meshes included.
        timeout_s: for one item.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    # A queue for each rank: one that is done early must not be taken for another.
    queues, port = [context.Queue() for _ in range(world_size)], _free_port()
    ranks = [
        context.Process(target=_rank_main, args=(rank, world_size, port, function, items, queues[rank]), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        for item in items:
            answers = _collect(queues, timeout_s)
            yield item, answers
            if isinstance(answers, str):  # the other ranks may wait in a collective: this group is of no further use
                return
    finally:
        for process in ranks:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


def _collect(queues: Sequence[Any], timeout_s: float) -> list[Any] | str:
    """Each rank's answer; the first failure as soon as it is there, since other ranks may wait for the failed one."""
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(answers) < len(queues):
        for rank, queue in enumerate(queues):
            if rank in answers:
                continue
            with contextlib.suppress(Empty):
                answers[rank] = pickle.loads(queue.get(timeout=0.05))
                if isinstance(answers[rank], _Failure):
                    return answers[rank].text
        if time.monotonic() > deadline:
            return f"ranks {sorted(set(range(len(queues))) - answers.keys())} gave no answer within {timeout_s:g} s"
    return [answers[rank] for rank in range(len(queues))]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _rank_main(rank: int, world_size: int, port: int, function: Any, items: Sequence[Any], results: Any) -> None:
    import torch

    from automodel_parallel import init_distributed, shutdown
    from automodel_parallel.mesh import ParallelDims

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # Items of one shape share their mesh: gloo keeps three threads for each of its dozen groups, which wake a hundred
    # times a second whether there is work or not.
    ParallelDims.build_meshes = functools.cache(ParallelDims.build_meshes)  # type: ignore[method-assign]
    try:
        info = init_distributed(device="cpu", timeout_minutes=1)
        for item in items:
            results.put(_as_bytes(function(item, info)))
    except BaseException:
        results.put(_as_bytes(_Failure(traceback.format_exc())))
    finally:
        shutdown()


def _as_bytes(answer: Any) -> bytes:
    # A queue would pass tensors as handles to shared memory, which end with the process that made them.
    return pickle.dumps(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""One rank of a world that does not exist: its process group answers every collective at once."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from automodel_core.config import ConfigNode


@contextlib.contextmanager
def imagined_rank(world_size: int, rank: int = 0) -> Iterator[Any]:
    """``DistInfo`` of one of ``world_size`` ranks, with a process group of torch's ``fake`` backend.

    Raises: RuntimeError: this process has joined a real group.
    """
    # Registers the backend on import.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from automodel_parallel import DistInfo

    if dist.is_initialized():
        raise RuntimeError("a process that has joined a process group cannot plan for another one; plan elsewhere.")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield DistInfo(
            rank=rank,
            local_rank=0,
            world_size=world_size,
            device=torch.device("cpu"),
            backend="fake",
            is_main=rank == 0,
        )
    finally:
        dist.destroy_process_group()


def without_wrapping(config: ConfigNode) -> bool:
    """Whether the strategy keeps whole copies (DDP, or one process), so that a rank is a process of its own."""
    section = config.get("distributed")
    if section is None:
        return True
    if "_target_" in section:
        return str(section.get("_target_")).lower().rsplit(".", 1)[-1] in ("ddp", "ddpmanager")
    return (section.get("strategy") or "ddp") in ("ddp", "none")

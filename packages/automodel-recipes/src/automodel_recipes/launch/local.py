"""Several processes on one machine, started by torchrun's own launcher."""

import os
import sys
import uuid
from collections.abc import Sequence


def under_launcher() -> bool:
    """Whether this process is already one of several that a launcher (torchrun, Slurm) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(argv: Sequence[str], nproc_per_node: int) -> int:
    """Run ``python -m automodel_recipes ARGV`` in ``nproc_per_node`` processes and wait for them.

    Arguments are passed as a list, never through a shell, so that paths may hold spaces.

    Args:
        argv: arguments of the command, e.g. ``["train", "my config.yaml"]``.
        nproc_per_node: processes to start.

    Returns: 0, or the exit code of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc_per_node,
        run_id=f"automodel-{uuid.uuid4().hex[:8]}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc_per_node)))
    try:
        elastic_launch(config, sys.executable)("-m", "automodel_recipes", *argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        sys.stderr.write(f"rank {rank} ended with exit code {code}; its message stands above.\n")
        return code
    return 0

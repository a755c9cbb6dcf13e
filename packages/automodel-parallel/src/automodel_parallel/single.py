"""The strategy of one process: nothing is wrapped, nothing is reduced."""

from __future__ import annotations

from automodel_parallel.context import ParallelContext
from automodel_parallel.init import DistInfo
from automodel_parallel.mesh import ParallelDims


class SingleProcessManager:
    """Train in one process, on one device."""

    def setup(self, info: DistInfo) -> ParallelContext:
        """Bind to this process.

        Raises: ValueError: several processes were started.
        """
        if info.world_size > 1:
            raise ValueError(
                f"strategy none with {info.world_size} processes: each would train alone. Set distributed.strategy to "
                "ddp or fsdp2, or start one process."
            )
        return ParallelContext(info, ParallelDims.derive(world_size=1), meshes=None)

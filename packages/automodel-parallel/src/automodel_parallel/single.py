"""The strategy of one process: nothing is wrapped, nothing is reduced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automodel_parallel.activation_checkpoint import ActivationCheckpointing
from automodel_parallel.compile import CompileConfig
from automodel_parallel.context import ParallelContext
from automodel_parallel.init import DistInfo
from automodel_parallel.mesh import ParallelDims


@dataclass(frozen=True, kw_only=True)
class SingleProcessManager:
    """Train in one process, on one device."""

    activation_checkpointing: bool | str | Mapping[str, Any] | ActivationCheckpointing | None = None
    """As for ``FSDP2Manager``."""
    compile: bool | Mapping[str, Any] | CompileConfig | None = None
    """As for ``FSDP2Manager``."""

    def setup(self, info: DistInfo) -> ParallelContext:
        """Bind to this process.

        Raises: ValueError: several processes were started.
        """
        if info.world_size > 1:
            raise ValueError(
                f"strategy none with {info.world_size} processes: each would train alone. Set distributed.strategy to "
                "ddp or fsdp2, or start one process."
            )
        context = ParallelContext(info, ParallelDims.derive(world_size=1), meshes=None)
        context.compiler = CompileConfig.parse(self.compile)
        context.checkpointing = ActivationCheckpointing.parse(self.activation_checkpointing)
        return context

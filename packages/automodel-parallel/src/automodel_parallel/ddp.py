"""Data parallelism with whole copies of the model: torch's DistributedDataParallel, summing gradients."""

# No `from __future__ import annotations` here: DDP inspects the hook's annotations and rejects strings.

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from automodel_parallel.activation_checkpoint import ActivationCheckpointing
from automodel_parallel.compile import CompileConfig
from automodel_parallel.context import ParallelContext
from automodel_parallel.init import DistInfo
from automodel_parallel.mesh import Meshes, ParallelDims
from automodel_parallel.report import ParallelReport

# torch 2.13 renames broadcast_buffers. Remove when the floor is 2.13.
_BUFFER_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True, kw_only=True)
class DDPManager:
    """Every rank holds the whole model; gradients of trainable parameters are summed over the ranks."""

    dp_size: int | str | None = None
    """Data ranks; none: all processes. Any other number than the world size is refused."""
    broadcast_buffers: bool = False
    """Copy rank 0's buffers before each forward. Transformers have none that training changes."""
    find_unused_parameters: bool = False
    """Look for parameters that a forward did not reach; costs a walk of the graph per step."""
    static_graph: bool = False
    """Promise that every step uses the same parameters; lets DDP plan, also with re-entrant checkpointing."""
    bucket_cap_mb: float = 25.0
    """Size of a gradient bucket in MiB: one all-reduce each, overlapped with the backward."""
    gradient_as_bucket_view: bool = True
    """Gradients live in the buckets, which saves one copy of them."""
    activation_checkpointing: bool | str | Mapping[str, Any] | ActivationCheckpointing | None = None
    """As for ``FSDP2Manager``."""
    compile: bool | Mapping[str, Any] | CompileConfig | None = None
    """As for ``FSDP2Manager``."""

    def setup(self, info: DistInfo) -> "DDPContext":
        """Bind to the ranks. One process needs no wrapper and gets none.

        Raises: ValueError: ``dp_size`` is not the world size.
        """
        dims = ParallelDims.derive(world_size=info.world_size, dp_size=self.dp_size, dp_replicate_size=info.world_size)
        meshes = dims.build_meshes(info.device.type) if info.world_size > 1 else None
        return DDPContext(info, dims, meshes, manager=self)


class DDPContext(ParallelContext):
    """``DDPManager`` bound to its ranks."""

    strategy = "ddp"

    def __init__(self, info: DistInfo, dims: ParallelDims, meshes: Meshes | None, *, manager: DDPManager) -> None:
        super().__init__(info, dims, meshes)
        self.manager = manager
        self.compiler = CompileConfig.parse(manager.compile)
        self.checkpointing = ActivationCheckpointing.parse(manager.activation_checkpointing)

    def parallelize(self, model: nn.Module) -> tuple[nn.Module, ParallelReport]:
        """Wrap in DDP with a summing hook. Frozen parameters take no part in the reductions.

        Raises: ValueError: the model is on the meta device, or nothing in it is trainable.
        """
        _check_ready(model)
        model, report = super().parallelize(model)
        if self.meshes is None:
            return model, report
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        manager = self.manager
        group = self.meshes.dp.get_group()
        wrapped = DistributedDataParallel(
            model,
            process_group=group,
            **{_BUFFER_SYNC: manager.broadcast_buffers},
            find_unused_parameters=manager.find_unused_parameters,
            static_graph=manager.static_graph,
            bucket_cap_mb=manager.bucket_cap_mb,
            gradient_as_bucket_view=manager.gradient_as_bucket_view,
        )
        wrapped.register_comm_hook(group, sum_gradients)
        report.add(f"DDP: gradients of {len(trainable)} parameters summed over {self.dp_size} ranks")
        return wrapped, report

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The module inside DDP."""
        return model.module if isinstance(model, DistributedDataParallel) else model

    @contextmanager
    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> Iterator[None]:
        """Without ``enabled`` gradients stay local and accumulate; the last micro-batch reduces their sum."""
        if enabled or not isinstance(model, DistributedDataParallel):
            yield
        else:
            with model.no_sync():
                yield


def sum_gradients(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP communication hook: the sum over ranks, where DDP itself would take the mean.

    The loss is a sum over the *global* count of label tokens, so a mean would divide twice.
    """
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _check_ready(model: nn.Module) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("DDP got a model on the meta device: every rank needs the weights. Load first, or use fsdp2.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("DDP got a model without a trainable parameter: unfreeze some, or add LoRA.")

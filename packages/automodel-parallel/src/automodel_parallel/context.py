"""What a recipe talks to while it trains: one process, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from automodel_parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from automodel_parallel.compile import CompileConfig, compile_blocks
from automodel_parallel.grad_norm import clip_grad_norm
from automodel_parallel.init import DistInfo
from automodel_parallel.mesh import Meshes, ParallelDims
from automodel_parallel.report import ParallelReport


class ParallelContext:
    """A strategy bound to its ranks. This base is a single process; strategies override what they change.

    Attributes:
        rank, world_size, device, is_main: where this process stands.
        dims: the sizes of all axes.
        mesh, meshes: ``DeviceMesh`` over ``pp, dp_replicate, dp_shard, cp, tp``, and the groups beside it; None for a
            process without a group.
        dp_rank, dp_size: which part of a global batch this rank reads. Ranks that differ only in ``cp``, ``tp`` or
            ``pp`` share a ``dp_rank``: they read the same rows.
        pipeline: None, or the schedule that replaces forward and backward under pipeline parallelism.
        compiler: how each block is compiled; off where the manager says nothing.
        checkpointing: what each block's backward recomputes; nothing where the manager says nothing.
    """

    strategy = "single"
    pipeline: Any = None
    compiler = CompileConfig(enabled=False)
    checkpointing = ActivationCheckpointing(mode="none")
    shards_parameters = False
    """Whether a rank holds a part of the parameters, so that weights are best read into the parts."""
    batches_per_forward = 1
    """How many batches of an evaluation go through the model together: more than 1 where stages would idle."""

    def __init__(self, info: DistInfo, dims: ParallelDims, meshes: Meshes | None) -> None:
        self.info = info
        self.dims = dims
        self.meshes = meshes
        self.mesh = meshes.axes if meshes is not None else None
        self.rank = info.rank
        self.world_size = info.world_size
        self.device = info.device
        self.is_main = info.is_main
        self.dp_size = dims.dp
        self.dp_rank = meshes.dp.get_local_rank() if meshes is not None else 0

    def parallelize(self, model: nn.Module) -> tuple[nn.Module, ParallelReport]:
        """Spread the model over the ranks. A model on the meta device stays there, to be materialised afterwards.

        Returns: the model to train (its parameter names are reached through ``unwrap``), and what was done.
        """
        report = ParallelReport(self.strategy, self.dims.describe())
        apply_activation_checkpointing(model, self.checkpointing, compiled=self.compiler.enabled, report=report)
        compile_blocks(model, self.compiler, report=report)
        return self._to_device(model), report

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model under the wrapper, whose parameters have their own names."""
        return model

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """What the strategy does to an optimizer built on the parallel model; only megatron-fsdp does anything."""
        return optimizer

    @property
    def random_stream(self) -> int:
        """Number of the random stream that this rank draws dropout from: one for all ranks that hold the same tokens.

        Tensor ranks repeat the same computation between their cut layers: other masks would part their hidden states.
        """
        if self.meshes is None:
            return 0
        stage: int = self.meshes.axes["pp"].get_local_rank()
        return stage * self.meshes.loss.size() + int(self.meshes.loss.get_local_rank())

    @property
    def loss_group(self) -> dist.ProcessGroup | None:
        """Ranks that hold different tokens; None for one."""
        return self.meshes.loss.get_group() if self.meshes is not None and self.meshes.loss.size() > 1 else None

    def sum_over_data(self, value: Tensor) -> Tensor:
        """Sum over ranks that read different rows: the count of label tokens, taken before sequences are sharded."""
        return _all_reduce(value, self.meshes and self.meshes.dp)

    def sum_over_loss_ranks(self, value: Tensor) -> Tensor:
        """Sum over ranks that hold different tokens: the loss for logging. Stages without a loss contribute 0."""
        return self.sum_over_stages(_all_reduce(value, self.meshes and self.meshes.loss))

    def sum_over_stages(self, value: Tensor) -> Tensor:
        """Sum over the pipeline ranks, which hold different layers of one model."""
        return _all_reduce(value, self.mesh and self.mesh["pp"])

    def any_rank(self, flag: bool) -> bool:
        """True on every rank when ``flag`` is true on one of them."""
        return bool(self.largest_over_ranks(int(flag)))

    def largest_over_ranks(self, value: int) -> int:
        """The largest of the ranks' numbers, on every rank. Through host memory where the backend allows: no sync."""
        if self.world_size == 1:
            return value
        on_host = "cpu:" in dist.get_backend_config()
        shared = torch.tensor(value, dtype=torch.int64, device="cpu" if on_host else self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any_rank(False)

    def shard_sequence(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of each sequence under context parallelism; the batch itself otherwise."""
        return batch

    @contextmanager
    def whole_sequences(self, model: nn.Module) -> Iterator[None]:
        """Surround a forward outside training whose sequences are not sharded, such as generation."""
        del model
        yield

    @contextmanager
    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; ``enabled`` on the last one of a step."""
        del model, enabled
        yield

    def clip_grad_norm(self, model: nn.Module, max_norm: float | None) -> Tensor:
        """Norm of all gradients of the run, clipped to ``max_norm``; see ``grad_norm.clip_grad_norm``."""
        return clip_grad_norm(
            model.parameters(),
            max_norm,
            world_size=self.world_size,
            pp_size=self.dims.pp,
            copies=self.pipeline.tied_parameters() if self.pipeline is not None else None,
            device=self.device,
        )

    @property
    def parameter_device(self) -> torch.device:
        """Where parameters and optimizer state live between steps."""
        return self.device

    def _to_device(self, model: nn.Module) -> nn.Module:
        if any(parameter.is_meta for parameter in model.parameters()):
            return model
        return model.to(self.parameter_device)


def _all_reduce(value: Tensor, mesh: DeviceMesh | None) -> Tensor:
    value = value.detach().clone()
    if mesh is not None and mesh.size() > 1:
        dist.all_reduce(value, group=mesh.get_group())
    return value

"""Sharded data parallelism by NVIDIA's ``megatron-fsdp`` (once nvFSDP), an optional extra for CUDA machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from automodel_parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from automodel_parallel.blocks import find_blocks
from automodel_parallel.context import ParallelContext
from automodel_parallel.init import DistInfo, ensure_process_group
from automodel_parallel.mesh import Meshes, ParallelDims
from automodel_parallel.report import ParallelReport


@dataclass(frozen=True, kw_only=True)
class MegatronFSDPManager:
    """Shard parameters, gradients and optimizer state with ``megatron-fsdp``."""

    dp_size: int | str | None = None
    """Data ranks; none: all processes."""
    zero_dp_strategy: int = 3
    """What is sharded: 1 optimizer state, 2 gradients too, 3 parameters too, 0 nothing."""
    megatron_fsdp_unit_modules: Sequence[str] | None = None
    """Classes of the units, by import path; None: the classes of the model's blocks."""
    overlap_grad_reduce: bool = True
    """Reduce gradients while the backward runs."""
    overlap_param_gather: bool = True
    """Gather the next unit while the running one computes."""
    grad_reduce_in_fp32: bool = False
    """Reduce gradients in float32 whatever the model's dtype."""
    preserve_fp32_weights: bool = True
    """Keep float32 main weights beside lower-precision ones."""
    check_for_nan_in_grad: bool = False
    """Report gradients that are not finite; waits for the device each step."""
    nccl_ub: bool = False
    """Register communication buffers with NCCL."""
    fsdp_double_buffer: bool = False
    """Two persistent buffers instead of allocating per unit."""
    activation_checkpointing: bool | str | Mapping[str, Any] | ActivationCheckpointing | None = None
    """As for ``FSDP2Manager``."""

    def setup(self, info: DistInfo) -> MegatronFSDPContext:
        """Bind to the ranks.

        Raises:
            ValueError: a device other than CUDA, sizes that do not fit, or an unknown ``zero_dp_strategy``.
            ImportError: the extra is not installed.
        """
        if self.zero_dp_strategy not in (0, 1, 2, 3):
            raise ValueError(
                f"zero_dp_strategy={self.zero_dp_strategy!r}: it must be 0, 1, 2 or 3. Use 3 to shard all."
            )
        dims = ParallelDims.derive(world_size=info.world_size, dp_size=self.dp_size)
        ActivationCheckpointing.parse(self.activation_checkpointing)
        if info.device.type != "cuda":
            raise ValueError(
                f"strategy megatron_fsdp on device {info.device.type!r}: the library runs on CUDA only. Use fsdp2 here."
            )
        load_library()
        ensure_process_group(info)
        return MegatronFSDPContext(info, dims, dims.build_meshes("cuda"), manager=self)

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """Keyword arguments of ``megatron_fsdp.fully_shard_model`` for this model, without mesh and device."""
        library = load_library()
        units = self.megatron_fsdp_unit_modules or sorted({_import_path(block) for _, block in find_blocks(model)})
        reduce_dtype = torch.float32 if self.grad_reduce_in_fp32 else None
        return {
            "fsdp_unit_modules": list(units),
            "zero_dp_strategy": self.zero_dp_strategy,
            "mixed_precision_policy": library.MixedPrecisionPolicy(
                main_params_dtype=torch.float32 if self.preserve_fp32_weights else None,
                main_grads_dtype=reduce_dtype,
                grad_comm_dtype=reduce_dtype,
            ),
            "overlap_grad_reduce": self.overlap_grad_reduce,
            "overlap_param_gather": self.overlap_param_gather,
            "report_nan_in_param_grad": self.check_for_nan_in_grad,
            "nccl_ub": self.nccl_ub,
            "fsdp_double_buffer": self.fsdp_double_buffer,
            # The loss is divided by the global count already: gradients are summed, not averaged.
            "calculate_per_token_loss": True,
            "sync_model_each_microbatch": False,
        }


class NVFSDPManager(MegatronFSDPManager):
    """``MegatronFSDPManager`` under the library's first name."""


class MegatronFSDPContext(ParallelContext):
    """``MegatronFSDPManager`` bound to its ranks."""

    strategy = "megatron_fsdp"
    meshes: Meshes

    def __init__(self, info: DistInfo, dims: ParallelDims, meshes: Meshes, *, manager: MegatronFSDPManager) -> None:
        super().__init__(info, dims, meshes)
        self.manager = manager

    def parallelize(self, model: nn.Module) -> tuple[nn.Module, ParallelReport]:
        """Wrap the model; ``prepare_optimizer`` must follow."""
        report = ParallelReport(self.strategy, self.dims.describe())
        settings = ActivationCheckpointing.parse(self.manager.activation_checkpointing)
        apply_activation_checkpointing(model, settings, compiled=False, report=report)
        arguments = self.manager.arguments(model)
        wrapped = load_library().fully_shard_model(
            model,
            device_mesh=self.meshes.shard,
            dp_shard_dim="dp_shard_cp",
            tp_dim="tp",
            device=self.device,
            **arguments,
        )
        report.add(f"megatron-fsdp: ZeRO-{self.manager.zero_dp_strategy} over {self.dp_size} ranks")
        return wrapped, report

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The module inside the wrapper."""
        return model.module if isinstance(model, load_library().MegatronFSDP) else model

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let the optimizer work on the library's shards."""
        return load_library().fully_shard_optimizer(optimizer)

    @contextmanager
    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> Iterator[None]:
        """Reduce in the micro-batch where ``enabled``."""
        model.set_model_auto_sync(enabled)
        yield


def load_library() -> Any:
    """The ``megatron_fsdp`` module.

    Raises: ImportError: the extra is not installed.
    """
    try:
        return import_module("megatron_fsdp")
    except ImportError as error:
        raise ImportError(
            "strategy megatron_fsdp needs the megatron-fsdp package: pip install 'automodel-parallel[megatron-fsdp]'."
        ) from error


def _import_path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"

"""Sharded data parallelism: torch's FSDP2 on every block and on the root, summing gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from automodel_parallel.blocks import find_blocks
from automodel_parallel.context import ParallelContext
from automodel_parallel.init import DistInfo, ensure_process_group
from automodel_parallel.mesh import Meshes, ParallelDims
from automodel_parallel.report import ParallelReport


@dataclass(frozen=True, kw_only=True)
class FSDP2Manager:
    """Shard parameters, gradients and optimizer state over the data ranks."""

    dp_size: int | str | None = None
    """Data ranks; none: what the other axes leave of the world size."""
    dp_replicate_size: int | str | None = None
    """Groups of ranks with a whole copy each (HSDP): shard inside a machine, replicate across. None: 1."""
    mp_policy: MixedPrecisionPolicy | Mapping[str, Any] | None = None
    """Dtypes of compute and reduction, e.g. ``{param_dtype: bfloat16, reduce_dtype: float32}``. None: as loaded."""
    cpu_offload: bool = False
    """Keep shards, gradients and optimizer state in host memory; the optimizer then steps on the CPU."""
    reshard_after_forward: bool = True
    """Free a block's full weights after its forward (ZeRO-3); False keeps them for the backward (ZeRO-2)."""
    defer_gradient_sync: bool = False
    """Reduce gradients once per step instead of per micro-batch. Holds *unsharded* gradients of all trainable
    parameters meanwhile: 4 bytes (2 in bf16) times the trainable parameters on every rank."""
    forward_prefetch: int = 0
    """Blocks gathered ahead of the running one in forward; 0 leaves it to FSDP2, which overlaps one."""
    backward_prefetch: int = 0
    """The same in backward."""

    def setup(self, info: DistInfo) -> FSDP2Context:
        """Bind to the ranks.

        Raises: ValueError: sizes that do not factor the world size, or an unknown key in ``mp_policy``.
        """
        dims = ParallelDims.derive(
            world_size=info.world_size, dp_size=self.dp_size, dp_replicate_size=self.dp_replicate_size
        )
        parse_mp_policy(self.mp_policy)
        ensure_process_group(info)
        return FSDP2Context(info, dims, dims.build_meshes(info.device.type), manager=self)


class FSDP2Context(ParallelContext):
    """``FSDP2Manager`` bound to its ranks."""

    strategy = "fsdp2"
    meshes: Meshes

    def __init__(self, info: DistInfo, dims: ParallelDims, meshes: Meshes, *, manager: FSDP2Manager) -> None:
        super().__init__(info, dims, meshes)
        self.manager = manager

    def parallelize(self, model: nn.Module) -> tuple[nn.Module, ParallelReport]:
        """Shard the model in place; parameters become DTensors under their own names."""
        report = ParallelReport(self.strategy, self.dims.describe())
        apply_fsdp2(model, self.meshes.shard, manager=self.manager, report=report)
        return self._to_device(model), report

    def _to_device(self, model: nn.Module) -> nn.Module:
        return model if self.manager.cpu_offload else super()._to_device(model)

    @contextmanager
    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> Iterator[None]:
        """Reduce over replicas (and, if deferred, over shards) only in the micro-batch where ``enabled``."""
        if isinstance(model, FSDPModule):
            if self.dims.dp_replicate > 1:
                model.set_requires_all_reduce(enabled)
            if self.manager.defer_gradient_sync:
                model.set_requires_gradient_sync(enabled)
            model.set_is_last_backward(enabled)
        yield


def apply_fsdp2(model: nn.Module, mesh: DeviceMesh, *, manager: FSDP2Manager, report: ParallelReport) -> None:
    """``fully_shard`` each block, then the root, all summing over ``dp_shard x cp`` (and over ``dp_replicate``)."""
    replicas, shards = mesh["dp_replicate"].size(), mesh["dp_shard_cp"].size()
    policy = parse_mp_policy(manager.mp_policy)
    if replicas * shards == 1 and policy == MixedPrecisionPolicy() and not manager.cpu_offload:
        report.add("FSDP2: one data rank, nothing to shard")
        return
    sharding: dict[str, Any] = {
        "mesh": mesh["dp_replicate", "dp_shard_cp"] if replicas > 1 else mesh["dp_shard_cp"],
        "mp_policy": policy,
        "offload_policy": CPUOffloadPolicy() if manager.cpu_offload else OffloadPolicy(),
    }
    blocks = [block for _, block in find_blocks(model)]
    for block in blocks:
        fully_shard(block, reshard_after_forward=manager.reshard_after_forward, **sharding)
    fully_shard(model, **sharding)
    sum_instead_of_mean(model)
    _set_prefetch(blocks, forward=manager.forward_prefetch, backward=manager.backward_prefetch)
    report.add(f"FSDP2: {len(blocks)} blocks and the root sharded over {shards} ranks, {replicas} replica(s), {policy}")


def sum_instead_of_mean(model: nn.Module) -> None:
    """Make every FSDP module sum gradients: the loss is divided by the global count already.

    Set on each module: on the root alone the children go on averaging. The forced SUM keeps the reduction to plain
    ``ReduceOp.SUM``, since gloo has no PREMUL_SUM.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def parse_mp_policy(policy: MixedPrecisionPolicy | Mapping[str, Any] | None) -> MixedPrecisionPolicy:
    """A policy from YAML: dtypes by name, as ``bfloat16`` or ``torch.bfloat16``.

    Raises: ValueError: an unknown key, or a name that is no floating dtype.
    """
    if policy is None:
        return MixedPrecisionPolicy()
    if isinstance(policy, MixedPrecisionPolicy):
        return policy
    allowed = ("param_dtype", "reduce_dtype", "output_dtype", "cast_forward_inputs")
    unknown = sorted(set(policy) - set(allowed))
    if unknown:
        raise ValueError(f"mp_policy has unknown key {unknown[0]!r}: allowed are {', '.join(allowed)}. Remove it.")
    values = {key: _dtype(key, value) if key.endswith("dtype") else value for key, value in policy.items()}
    return MixedPrecisionPolicy(**values)


def _dtype(key: str, value: Any) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"mp_policy.{key}={value!r}: it must be a floating dtype such as bfloat16 or float32. Change it."
        )
    return dtype


def _set_prefetch(blocks: list[nn.Module], *, forward: int, backward: int) -> None:
    for i, block in enumerate(blocks):
        assert isinstance(block, FSDPModule)
        if forward:
            block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + forward])
        if backward:
            block.set_modules_to_backward_prefetch(blocks[max(i - backward, 0) : i][::-1])

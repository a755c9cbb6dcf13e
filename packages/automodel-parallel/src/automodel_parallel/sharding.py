"""Shard a model's blocks and root with torch's FSDP2, summing gradients, in the dtypes that a policy names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from automodel_parallel.blocks import find_blocks
from automodel_parallel.report import ParallelReport

if TYPE_CHECKING:
    from automodel_parallel.fsdp2 import FSDP2Manager


def apply_fsdp2(
    model: nn.Module, mesh: DeviceMesh, *, manager: FSDP2Manager, report: ParallelReport, ignored: set[nn.Parameter]
) -> None:
    """``fully_shard`` each block, then the root, all summing over ``dp_shard x cp`` (and over ``dp_replicate``)."""
    replicas, shards = mesh["dp_replicate"].size(), mesh["dp_shard_cp"].size()
    policy = parse_mp_policy(manager.mp_policy)
    if replicas * shards == 1 and policy == MixedPrecisionPolicy() and not manager.cpu_offload:
        report.add("FSDP2: one data rank, nothing to shard")
        return
    sharding: dict[str, Any] = {
        "mesh": mesh["dp_replicate", "dp_shard_cp"] if replicas > 1 else mesh["dp_shard_cp"],
        "mp_policy": policy,
        "ignored_params": ignored or None,
        "shard_placement_fn": partial(_shard_dim, shards=shards),
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.accelerator.is_available())
        if manager.cpu_offload
        else OffloadPolicy(),
    }
    blocks = [block for _, block in find_blocks(model)]
    for block in blocks:
        fully_shard(block, reshard_after_forward=manager.reshard_after_forward, **sharding)
    fully_shard(model, **sharding)
    sum_instead_of_mean(model)
    model.register_forward_hook(_reshard_after_inference)
    _set_prefetch(blocks, forward=manager.forward_prefetch, backward=manager.backward_prefetch)
    report.add(f"FSDP2: {len(blocks)} blocks and the root sharded over {shards} ranks, {replicas} replica(s), {policy}")


def _reshard_after_inference(model: nn.Module, inputs: Any, outputs: Any) -> None:
    """Leave shards behind a forward without gradients too.

    FSDP2 keeps what it expects a backward to need, the root's own parameters at least; none comes here, and whoever
    looks at the model next, such as a checkpoint, would find other parameters than the optimizer holds.
    """
    if torch.is_grad_enabled():
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _shard_dim(parameter: nn.Parameter, *, shards: int) -> Shard | None:
    """The dimension that FSDP2 cuts: 0, unless tensor ranks cut that one unevenly.

    DTensor cannot place a whole tensor into a dimension that is cut twice with a remainder (a vocabulary of 51 over
    2 x 2 ranks), so FSDP2 takes dimension 1 there.
    """
    if not isinstance(parameter, DTensor) or Shard(0) not in parameter.placements:
        return None
    pieces = shards * parameter.device_mesh.size()
    if parameter.shape[0] % pieces == 0:
        return None
    if parameter.ndim < 2 or parameter.shape[1] % shards:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} cannot be spread over {parameter.device_mesh.size()} "
            f"tensor and {shards} data ranks: dim 0 must divide by {pieces}, or dim 1 by {shards}. Change the sizes."
        )
    return Shard(1)


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

"""One gradient norm over every mesh at once, replicated parts counted once, without waiting for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate


def clip_grad_norm(
    parameters: Iterable[nn.Parameter],
    max_norm: float | None,
    *,
    world_size: int = 1,
    pp_size: int = 1,
    copies: dict[nn.Parameter, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Measure the L2 norm of all gradients of the run and scale them so that it does not exceed ``max_norm``.

    Every rank adds the squares of its local gradients, each divided by the number of ranks that hold the same
    numbers; one all-reduce over the run then gives the same total everywhere. So tensors on different meshes (FSDP2,
    tensor, expert, pipeline) need no special case, and uneven shards neither.

    Args:
        parameters: this rank's parameters; those without gradient are passed over.
        max_norm: limit of the norm; None measures only.
        world_size: ranks of the run; 1 needs no process group.
        pp_size: pipeline stages: a plain parameter lives in one stage, on ``world_size / pp_size`` ranks.
        copies: extra copies of a parameter on other pipeline stages (tied embeddings), as total count of stages.
        device: where the norm is computed; None: the device of the first gradient, else the CPU.

    Returns: float32 scalar on the device, before clipping; equal on every rank; 0 without any gradient.
    Raises: ValueError: ``max_norm`` below or equal to 0.
    Source: the formula of ``torch.nn.utils.clip_grad_norm_`` (epsilon 1e-6 included).
    """
    if max_norm is not None and max_norm <= 0:
        raise ValueError(f"max_norm={max_norm}: it must be > 0. Leave it out (none) to measure without clipping.")
    holders = [parameter for parameter in parameters if parameter.grad is not None]
    total = _sum_of_squares(holders, world_size // pp_size, copies or {}, device)
    if world_size > 1:
        dist.all_reduce(total)
    norm = total.sqrt()
    if max_norm is not None:
        _scale([_local(parameter.grad) for parameter in holders], (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def num_copies(grad: Tensor, ranks: int) -> int:
    """How many of the ``ranks`` that share a pipeline stage hold the numbers that this rank's local part holds."""
    if not isinstance(grad, DTensor):
        return ranks
    mesh = grad.device_mesh
    shards = 1
    for axis, placement in enumerate(grad.placements):
        if not isinstance(placement, Replicate):
            shards *= mesh.size(axis)
    return ranks // shards


def _sum_of_squares(
    holders: list[nn.Parameter], ranks: int, copies: dict[nn.Parameter, int], device: torch.device | None
) -> Tensor:
    groups: dict[tuple[int, torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for parameter in holders:
        grad = parameter.grad
        if isinstance(grad, DTensor) and any(isinstance(placement, Partial) for placement in grad.placements):
            placements = [Replicate() if isinstance(p, Partial) else p for p in grad.placements]
            parameter.grad = grad = grad.redistribute(placements=placements)
        local = _local(grad)
        count = num_copies(grad, ranks) * copies.get(parameter, 1)
        groups[count, local.device, local.dtype].append(local)
    if device is None:
        device = next(iter(groups))[1] if groups else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float32, device=device)
    for (count, _, _), tensors in groups.items():
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(tensors)])
        total += (norms.square().sum() / count).to(device)
    return total


def _scale(grads: list[Tensor], factor: Tensor) -> None:
    by_place: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for grad in grads:
        by_place[grad.device, grad.dtype].append(grad)
    for (device, dtype), tensors in by_place.items():
        torch._foreach_mul_(tensors, factor.to(device=device, dtype=dtype))


def _local(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.to_local() if isinstance(grad, DTensor) else grad

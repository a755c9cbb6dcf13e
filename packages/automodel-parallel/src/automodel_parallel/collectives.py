"""Collectives with gradients, for plain tensors between sharded modules.

Each pairs a forward with the backward that makes a split model equal a whole one: where a tensor is copied to all
ranks its gradients are summed, where parts are summed the gradient is copied, and so on. With one rank all are the
identity. ``group`` is a process group, ``dim`` a tensor dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def copy_to_group(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Identity; backward sums the gradients of all ranks."""
    return x if group.size() == 1 else _Copy.apply(x, group)


def sum_over_group(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum of all ranks' tensors; backward hands the (equal) gradient on."""
    return x if group.size() == 1 else _Sum.apply(x, group)


def split(x: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """This rank's part of a replicated tensor; backward gathers the parts. ``dim`` must divide."""
    return x if group.size() == 1 else _Split.apply(x, group, dim)


def gather(x: Tensor, group: dist.ProcessGroup, *, dim: int, sizes: list[int] | None = None) -> Tensor:
    """All parts joined on every rank, for computation that every rank repeats; backward keeps this rank's part.

    Args:
        sizes: length of each rank's part along ``dim`` where they differ.
    """
    return x if group.size() == 1 else _Gather.apply(x, group, dim, sizes)


def gather_for_partial(x: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """All parts joined, for computation that is split over the ranks; backward sums and scatters (reduce-scatter)."""
    return x if group.size() == 1 else _GatherForPartial.apply(x, group, dim)


def sum_and_scatter(x: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """This rank's part of the sum of all ranks' tensors (reduce-scatter); backward gathers."""
    return x if group.size() == 1 else _SumAndScatter.apply(x, group, dim)


def all_to_all(x: Tensor, group: dist.ProcessGroup, *, send: list[int], receive: list[int]) -> Tensor:
    """Exchange rows: ``send[r]`` rows go to rank ``r``, ``receive[r]`` come from it; backward sends them back."""
    return _AllToAll.apply(x, group, send, receive)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return x.chunk(group.size(), dim=dim)[group.rank()].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(grad, ctx.group, ctx.dim), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int, sizes: list[int] | None) -> Tensor:
        ctx.dim, ctx.length = dim, x.size(dim)
        ctx.start = sum(sizes[: group.rank()]) if sizes else group.rank() * ctx.length
        return _all_gather(x, group, dim, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad.narrow(ctx.dim, ctx.start, ctx.length).contiguous(), None, None, None


class _GatherForPartial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _all_gather(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(grad, ctx.group, ctx.dim), None, None


class _SumAndScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _reduce_scatter(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(grad, ctx.group, ctx.dim), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return _exchange(x, group, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.group, ctx.receive, ctx.send), None, None, None


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def _all_gather(x: Tensor, group: dist.ProcessGroup, dim: int, sizes: list[int] | None = None) -> Tensor:
    lengths = sizes or [x.size(dim)] * group.size()
    longest = max(lengths)
    if x.size(dim) < longest:  # equal lengths on the wire, the filling is cut off below
        shape = list(x.shape)
        shape[dim] = longest - x.size(dim)
        x = torch.cat([x, x.new_zeros(shape)], dim=dim)
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in lengths]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat([part.narrow(dim, 0, length) for part, length in zip(parts, lengths)], dim=dim)


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    parts = [part.contiguous() for part in x.chunk(group.size(), dim=dim)]
    out = torch.empty_like(parts[0])
    dist.reduce_scatter(out, parts, group=group)
    return out


def _exchange(x: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out

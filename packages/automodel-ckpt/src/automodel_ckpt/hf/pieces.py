"""Where a weight in memory lies on disk, piece by piece, when Transformers fuses or transposes weights at load.

The conversion from memory to disk is run once on the meta device. A tensor on disk that comes out as a *view* of one in
memory (an expert of a stack, the upper half, a transpose) says by its offset and strides which part of it that is; then
each rank reads just what it keeps of it. Of other conversions (a permutation for rotary embeddings, say) the flat
positions are sent through instead of the values, which tells where each element goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from automodel_ckpt.boxes import Box, local_part, whole
from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.hf.names import Group


@dataclass(frozen=True)
class Piece:
    """A tensor on disk that is ``box`` of a tensor in memory; ``dims[i]`` is the memory dimension of disk dimension i.

    None stands for a disk dimension of size 1 that has none. Memory dimensions that are not named have size 1 there.
    """

    disk: str
    memory: str
    box: Box
    dims: tuple[int | None, ...]

    def local(self, tensor: Tensor) -> tuple[Box, Tensor] | None:
        """What this rank keeps: a box of the tensor *on disk*, and the view of its memory; None if nothing."""
        held, data = local_part(tensor)
        common = held.intersect(self.box)
        if common is None:
            return None
        view = self.turn(held.view(data, common))
        offset = tuple(0 if d is None else common.offset[d] - self.box.offset[d] for d in self.dims)
        return Box(offset, tuple(view.shape)), view

    def turn(self, part: Tensor) -> Tensor:
        """A part of the tensor in memory with the dimensions that it has on disk."""
        named = [dim for dim in self.dims if dim is not None]
        view = part.permute([*named, *(d for d in range(part.ndim) if d not in named)])
        while view.ndim > len(named):
            view = view.squeeze(-1)
        for index, dim in enumerate(self.dims):
            if dim is None:
                view = view.unsqueeze(index)
        return view


class _Views(TorchDispatchMode):
    """Copies are left out, so that what is copied only to be contiguous stays recognisable as a view."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return args[0] if func is torch.ops.aten.clone.default else func(*args, **(kwargs or {}))


def pieces_of(group: Group, tensors: Mapping[str, Tensor]) -> list[Piece] | None:
    """The pieces of a group's tensors, or None where the conversion is not a matter of cutting and transposing."""
    like = {name: torch.empty(tensors[name].shape, device="meta") for name in group.memory}
    try:
        with _Views():
            converted = group.convert(dict(like))
    except (RuntimeError, ValueError, IndexError):
        return None  # a reshape of what is not contiguous, for example
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in like.items()}
    found = []
    for disk, view in converted.items():
        name = owners.get(view.untyped_storage()._cdata)
        piece: Piece | None
        if name is not None and view is like[name]:
            piece = Piece(disk, name, whole(view.shape), tuple(range(view.ndim)))
        else:
            piece = None if name is None else _piece(disk, name, view, like[name])
        if piece is None:
            return None
        found.append(piece)
    covered = sum(piece.box.numel for piece in found)
    return found if covered == sum(tensor.numel() for tensor in like.values()) else None


def _piece(disk: str, name: str, view: Tensor, memory: Tensor) -> Piece | None:
    """Read offset and strides of a view as a box and an order of dimensions."""
    start, rest = [], view.storage_offset()
    for stride in memory.stride():
        start.append(rest // max(1, stride))
        rest %= max(1, stride)
    extent, dims = [1] * memory.ndim, []
    for size, stride in zip(view.shape, view.stride()):
        dim = next(
            (d for d in range(memory.ndim) if memory.stride(d) == stride and memory.shape[d] > 1 and d not in dims),
            None,
        )
        if size == 1:
            dim = None
        elif dim is None or start[dim] + size > memory.shape[dim]:
            return None
        else:
            extent[dim] = size
        dims.append(dim)
    return Piece(disk, name, Box(tuple(start), tuple(extent)), tuple(dims))


def invert(group: Group, disk: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of a group, whole, from those on disk; for conversions that `pieces_of` cannot read.

    Raises: UnsupportedState: the conversion does more than move elements.
    """
    positions, total = {}, 0
    for name in group.memory:
        shape = tuple(tensors[name].shape)
        positions[name] = torch.arange(total, total + math.prod(shape)).reshape(shape)
        total += math.prod(shape)
    dtype = next(iter(disk.values())).dtype
    flat, seen = torch.empty(total, dtype=dtype), torch.zeros(total, dtype=torch.bool)
    for name, index in group.convert(dict(positions)).items():
        if index.dtype != torch.int64 or disk[name].dtype != dtype:
            raise _not_a_move(group)
        flat[index.reshape(-1)] = disk[name].reshape(-1)
        seen[index.reshape(-1)] = True
    if sum(tensor.numel() for tensor in disk.values()) != total or not bool(seen.all()):
        raise _not_a_move(group)
    parts = flat.split([math.prod(tensors[name].shape) for name in group.memory])
    return {name: part.reshape(tensors[name].shape) for name, part in zip(group.memory, parts)}


def _not_a_move(group: Group) -> UnsupportedState:
    return UnsupportedState(
        f"{group.memory[0]!r} is computed from {len(group.disk)} tensors on disk, not only moved; it cannot be read in "
        "parts. Load the model with from_pretrained() and shard it afterwards."
    )

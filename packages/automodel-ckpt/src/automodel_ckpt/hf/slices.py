"""Weights on their way to a Hugging Face file, in slices of bounded size whatever the size of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.boxes import Box, local_part, whole
from automodel_ckpt.errors import StateMismatch
from automodel_ckpt.hf.names import Group
from automodel_ckpt.hf.pieces import Piece, pieces_of
from automodel_ckpt.safetensors_file import Entry
from automodel_ckpt.tensor_bytes import byte_reader

SLICE_BYTES = 1 << 21

Fetch = Callable[[str, Box], Tensor]
"""``fetch(name in memory, box)`` -> that part of the tensor."""


def disk_tensors(
    group: Group, tensors: Mapping[str, Tensor], fetch: Fetch, dtype: torch.dtype | None
) -> Iterator[tuple[str, int, Tensor]]:
    """Yield ``(name on disk, index of its first element, flat slice)`` for all that a group becomes on disk.

    Slices of a tensor come in order. Only of conversions that are no matter of cutting and transposing is the whole
    group fetched at once.
    """
    pieces = pieces_of(group, tensors)
    if pieces is None:
        fetched = {name: fetch(name, whole(tensors[name].shape)) for name in group.memory}
        for name, tensor in group.convert(fetched).items():
            flat, step = tensor.reshape(-1), max(1, SLICE_BYTES // tensor.element_size())
            for start in range(0, max(1, flat.numel()), step):
                yield name, start, _converted(flat[start : start + step], dtype)
        return
    for piece in pieces:
        start = 0
        for box in slice_boxes(piece, tensors[piece.memory].element_size()):
            flat = piece.turn(fetch(piece.memory, box)).reshape(-1)
            yield piece.disk, start, _converted(flat, dtype)
            start += flat.numel()


def slice_boxes(piece: Piece, item_bytes: int) -> Iterator[Box]:
    """Boxes of the tensor in memory that are consecutive on disk, each of at most `SLICE_BYTES` (or one element)."""
    order = tuple(dim for dim in piece.dims if dim is not None)
    yield from _cut(piece.box, order, item_bytes)


def _cut(box: Box, order: tuple[int, ...], item_bytes: int) -> Iterator[Box]:
    if not order or box.numel * item_bytes <= SLICE_BYTES:
        yield box
        return
    dim, size = order[0], box.shape[order[0]]
    step = SLICE_BYTES // (box.numel // size * item_bytes)
    for low in range(0, size, max(1, step)):
        part = _narrowed(box, dim, low, min(max(1, step), size - low))
        if step:
            yield part
        else:
            yield from _cut(part, order[1:], item_bytes)


def _narrowed(box: Box, dim: int, start: int, size: int) -> Box:
    offset, shape = list(box.offset), list(box.shape)
    offset[dim], shape[dim] = offset[dim] + start, size
    return Box(tuple(offset), tuple(shape))


def _converted(flat: Tensor, dtype: torch.dtype | None) -> Tensor:
    return flat.to(output_dtype(flat.dtype, dtype))


def output_dtype(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """Floating-point tensors take the wanted dtype, others keep theirs."""
    return wanted if wanted is not None and dtype.is_floating_point else dtype


def write_slice(write: Any, entry: Entry, start: int, flat: Tensor) -> None:
    """Write a slice to its place in the file.

    Raises: StateMismatch: a value is not finite.
    """
    if flat.is_floating_point() and flat.numel() and not _is_finite(flat):
        raise StateMismatch(f"weight {entry.name!r} is not finite; nothing is written. The run has diverged.")
    size = flat.numel() * flat.element_size()
    write(byte_reader(flat)(0, size), entry.start + start * flat.element_size())


def _is_finite(flat: Tensor) -> bool:
    extremes = torch.aminmax(flat.float() if flat.element_size() == 1 else flat)
    return bool(torch.isfinite(extremes.min) & torch.isfinite(extremes.max))


@torch.no_grad()
def gather_box(tensor: Tensor, box: Box) -> Tensor:
    """A part of a tensor of a model; of a sharded one on every rank, which all call this.

    Each rank puts in the bytes that it holds and zeros elsewhere, and the bytes are added up, so bits stay as they are.
    """
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return whole(tensor.shape).view(tensor.detach(), box)
    held, data = local_part(tensor)
    gathered = torch.zeros(box.shape, dtype=tensor.dtype, device=data.device)
    common = held.intersect(box)
    if common is not None:
        box.view(gathered, common).copy_(held.view(data, common))
    mesh = tensor.device_mesh
    if gathered.numel() and mesh.get_coordinate() is not None:
        flat = gathered.reshape(-1).view(torch.uint8)
        for axis, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                dist.all_reduce(flat, group=mesh.get_group(axis))
    return gathered

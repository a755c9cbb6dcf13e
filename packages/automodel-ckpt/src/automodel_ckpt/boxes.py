"""Boxes: which part of a global tensor a rank holds.

A box is an offset and a shape in the global tensor's coordinates. Every sharding of torch (FSDP2, tensor parallel,
both at once, uneven or empty parts) is one box per rank and tensor, so saving, loading and resharding are all
intersections of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automodel_ckpt.errors import UnsupportedState


@dataclass(frozen=True, order=True)
class Box:
    """A hyper-rectangle of a global tensor."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """The common box, or None where they share no element."""
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset))
        ends = [min(a + n, b + m) for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape)]
        shape = tuple(end - start for start, end in zip(offset, ends))
        return Box(offset, shape) if all(n > 0 for n in shape) else None

    def contains(self, other: Box) -> bool:
        return all(a <= b and b + m <= a + n for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape))

    def view(self, tensor: Tensor, part: Box) -> Tensor:
        """The view of ``tensor``, whose data is this box, that holds ``part``."""
        for dim, (start, size) in enumerate(zip(part.offset, part.shape)):
            tensor = tensor.narrow(dim, start - self.offset[dim], size)
        return tensor


def whole(shape: Sequence[int]) -> Box:
    """The box of a complete tensor."""
    return Box((0,) * len(shape), tuple(shape))


def local_part(tensor: Tensor) -> tuple[Box, Tensor]:
    """The box of ``tensor`` that this rank holds, and its data; a plain tensor is its own whole.

    Raises: UnsupportedState: the tensor holds unreduced partial sums, is a subclass whose bytes are elsewhere,
        or its local shape does not follow from its placements.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        box = _dtensor_box(tensor)
        local = tensor.to_local()
        if tuple(local.shape) != box.shape and not (local.numel() == 0 and box.numel == 0):
            raise UnsupportedState(
                f"a DTensor of shape {tuple(tensor.shape)} placed {tensor.placements} holds {tuple(local.shape)} here "
                f"where {box.shape} follows from its placements. Redistribute it before saving."
            )
        return box, _plain(local).reshape(box.shape)
    return whole(tensor.shape), _plain(tensor)


def global_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape before sharding (that of the tensor itself: DTensors report their global shape)."""
    return tuple(tensor.shape)


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if type(tensor) is torch.nn.Parameter:
        tensor = tensor.data
    if hasattr(tensor, "fsdp_pre_all_gather") and type(getattr(tensor, "_tensor", None)) is Tensor:
        tensor = tensor._tensor  # FSDP2's own extension point (torchao's FP8 gathers): plain numbers, cast on the way
    if type(tensor) is not Tensor:
        # bitsandbytes and torchao wrap packed bytes whose meaning lies in other attributes.
        raise UnsupportedState(
            f"a tensor subclass {type(tensor).__name__}: only plain tensors and DTensors are stored. "
            "Dequantize it, or save with trainable_only=True so that a frozen quantized base stays out."
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedState(f"a tensor of layout {tensor.layout}: only dense tensors are stored. Call .to_dense().")
    return tensor


def _dtensor_box(tensor: Tensor) -> Box:
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise UnsupportedState(f"a DTensor placed {placements} holds unreduced sums. Redistribute it before saving.")
    coordinate = mesh.get_coordinate()
    offset, shape = [0] * tensor.ndim, list(tensor.shape)
    if coordinate is None:  # this rank is outside the tensor's mesh: it holds nothing
        return Box(tuple(offset), (0, *shape[1:]))
    for axis in _sharding_order(placements):
        dim = placements[axis].dim
        start, size = _chunk(shape[dim], mesh.size(axis), coordinate[axis])
        offset[dim] += start
        shape[dim] = size
    return Box(tuple(offset), tuple(shape))


def _sharding_order(placements: Sequence) -> list[int]:
    """Mesh axes in the order in which they cut the tensor.

    FSDP2 over tensor parallelism marks its own axis as strided because it cuts what tensor parallelism left,
    although its axis comes first in the mesh: plain shards cut first, left to right, then strided ones.
    """
    plain = [i for i, p in enumerate(placements) if p.is_shard() and not _is_strided(p)]
    strided = [i for i, p in enumerate(placements) if _is_strided(p)]
    return plain + strided[::-1]


def _is_strided(placement: object) -> bool:
    return type(placement).__name__ == "_StridedShard"


def _chunk(size: int, num_chunks: int, index: int) -> tuple[int, int]:
    """Start and size of part ``index``, as ``torch.chunk`` cuts, with empty parts at the end."""
    part = -(-size // num_chunks)
    start = min(size, part * index)
    return start, min(size, start + part) - start


def tiles(shape: Sequence[int], boxes: Iterable[Box]) -> str | None:
    """None if the boxes cover a tensor of ``shape`` exactly once, else what is wrong."""
    target = whole(shape)
    boxes = [box for box in boxes if box.numel]
    for box in boxes:
        if len(box.shape) != len(target.shape) or not target.contains(box):
            return f"part {box.offset}+{box.shape} lies outside shape {target.shape}"
    covered = sum(box.numel for box in boxes)
    if covered != target.numel:
        return f"parts hold {covered} of {target.numel} elements"
    # Equal volume and no overlap is exact cover. Sorted boxes overlap only with near neighbours in practice.
    boxes.sort()
    for i, box in enumerate(boxes):
        for other in boxes[i + 1 :]:
            if box.shape and other.offset[0] >= box.offset[0] + box.shape[0]:
                break
            if box.intersect(other) is not None:
                return f"parts {box.offset}+{box.shape} and {other.offset}+{other.shape} overlap"
    return None

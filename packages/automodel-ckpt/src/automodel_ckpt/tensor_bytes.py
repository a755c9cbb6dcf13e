"""Tensors as raw bytes, without copies where the memory allows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def is_flat_cpu(tensor: Tensor) -> bool:
    """Whether the bytes of ``tensor`` lie in CPU memory in row-major order."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def writable_bytes(tensor: Tensor) -> memoryview:
    """The memory of a `is_flat_cpu` tensor, to read or to write."""
    return memoryview(_as_uint8(tensor).numpy()).cast("B") if tensor.numel() else memoryview(bytearray())


def byte_reader(tensor: Tensor) -> Callable[[int, int], memoryview]:
    """``read(start, end)`` -> bytes of ``tensor`` in row-major order; a device tensor is copied by the slice."""
    if tensor.numel() == 0:
        return lambda start, end: memoryview(b"")
    if is_flat_cpu(tensor):
        memory = writable_bytes(tensor)
        return lambda start, end: memory[start:end]
    flat = _as_uint8(tensor.resolve_conj().resolve_neg().contiguous())
    return lambda start, end: memoryview(flat[start:end].cpu().numpy()).cast("B")


def _as_uint8(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)

"""Memory around a tensor filled with NaN: a kernel that reads outside spreads it, one that writes removes it."""

import torch
from torch import Tensor

BAND = 64


def guarded(tensor: Tensor) -> Tensor:
    """Copy a float tensor into the middle of a NaN-filled buffer; ``requires_grad`` stays."""
    contiguous = tensor.detach().contiguous()
    buffer = torch.full((contiguous.numel() + 2 * BAND,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    inner = buffer[BAND : BAND + contiguous.numel()].view(contiguous.shape)
    inner.copy_(contiguous)
    inner._guard_buffer = buffer
    return inner.requires_grad_(tensor.requires_grad)


def guards_intact(tensor: Tensor) -> bool:
    """Whether the NaN bands around a :func:`guarded` tensor are still NaN."""
    buffer = tensor._guard_buffer
    return bool(buffer[:BAND].isnan().all() and buffer[-BAND:].isnan().all())

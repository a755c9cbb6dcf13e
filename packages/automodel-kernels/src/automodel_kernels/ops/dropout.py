"""Dropout that keeps a seed instead of a mask: the mask is drawn again when the gradient needs it."""

import torch
from torch import Tensor


def draw_seed() -> int:
    """Return a seed from torch's CPU generator: reproducible through ``torch.manual_seed``, no device sync."""
    return int(torch.randint(0, 2**62, (), dtype=torch.int64).item())


def dropout_scale(like: Tensor, p: float, seed: int | None) -> Tensor | None:
    """Return the mask divided by ``1 - p`` in the shape, dtype and device of ``like``; None when ``p`` is 0.

    The same ``(shape, device, p, seed)`` gives the same mask.
    """
    if not p:
        return None
    assert seed is not None, "dropout needs a seed"
    generator = torch.Generator(device=like.device).manual_seed(seed)
    return torch.empty_like(like).bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)

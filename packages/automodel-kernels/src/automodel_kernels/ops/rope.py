"""Rotary position embedding of query and key together."""

import torch
from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1, strict: bool = False
) -> tuple[Tensor, Tensor]:
    """``y = x cos + rotate_half(x) sin`` on the first R channels; the gradient is the rotation by the opposite angle.

    Positions are in ``cos`` and ``sin`` (see :func:`automodel_kernels.reference.rope_cos_sin`): packed rows whose
    positions restart, and M-RoPE, need nothing else.

    Args:
        q, k: ``[B, heads, T, D]`` (``unsqueeze_dim=1``) or ``[B, T, heads, D]`` (``unsqueeze_dim=2``); any strides.
        cos, sin: ``[B, T, R]`` or ``[1, T, R]``, R even and at most D, both halves equal, without gradient.
        strict: a fallback to PyTorch is an error.

    Raises: ValueError: shapes disagree.
    """
    _check(q, k, cos, sin, unsqueeze_dim)
    if choose_backend("rope", q, k, cos, sin, strict=strict) == "triton":
        from automodel_kernels.triton_ops.rope import rope as triton_rope

        return triton_rope(q, k, cos, sin, unsqueeze_dim)
    return reference.rope(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> None:
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"unsqueeze_dim={unsqueeze_dim}: it must be 1 ([B, heads, T, D]) or 2 ([B, T, heads, D]).")
    token_dim = 3 - unsqueeze_dim
    same = q.ndim == k.ndim == 4 and cos.ndim == 3 and cos.shape == sin.shape and q.shape[-1] == k.shape[-1]
    if not same or q.shape[0] != k.shape[0] or q.shape[token_dim] != k.shape[token_dim]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}: q and k must be "
            "4-d with equal batch, length and head size, cos and sin equal and 3-d."
        )
    if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[token_dim]:
        raise ValueError(
            f"cos has shape {tuple(cos.shape)}: it must be [{q.shape[0]} or 1, {q.shape[token_dim]}, R] for these "
            "queries. Check unsqueeze_dim and the position ids."
        )
    if cos.shape[2] > q.shape[-1] or cos.shape[2] % 2:
        raise ValueError(f"R={cos.shape[2]}: it must be even and at most the head size {q.shape[-1]}.")
    if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
        raise ValueError("cos or sin requires a gradient: positions have none. Compute them under torch.no_grad().")

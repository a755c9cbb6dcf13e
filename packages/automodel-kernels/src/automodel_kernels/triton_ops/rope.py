"""Rotary embedding of query and key in one launch: a program rotates all heads of one token.

``y1 = x1 cos - x2 sin``, ``y2 = x2 cos + x1 sin`` for the halves of the first R channels; backward negates sin.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from automodel_kernels.triton_ops.common import launch, round_to


@triton.jit
def rotate_heads(
    src,
    dst,
    cos,
    sin,
    base_in,
    base_out,
    head_in,
    head_out,
    num_heads,
    half,
    D,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """All heads of one token; with REST > 0 the channels after the rotated ones are copied."""
    heads = tl.arange(0, HEADS)
    lanes = tl.arange(0, HALF)
    inside = (heads < num_heads)[:, None] & (lanes < half)[None, :]
    source = src + base_in + heads[:, None] * head_in + lanes[None, :]
    target = dst + base_out + heads[:, None] * head_out + lanes[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    kind = dst.dtype.element_ty
    tl.store(target, round_to(first * cos[None, :] - second * sin[None, :], kind), mask=inside)
    tl.store(target + half, round_to(second * cos[None, :] + first * sin[None, :], kind), mask=inside)
    if REST > 0:
        tail = 2 * half + tl.arange(0, REST)
        more = (heads < num_heads)[:, None] & (tail < D)[None, :]
        kept = tl.load(src + base_in + heads[:, None] * head_in + tail[None, :], mask=more, other=0.0)
        tl.store(dst + base_out + heads[:, None] * head_out + tail[None, :], kept, mask=more)


@triton.jit
def rope_kernel(
    q,
    k,
    q_out,
    k_out,
    cos,
    sin,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    qo_batch,
    qo_head,
    qo_token,
    ko_batch,
    ko_head,
    ko_token,
    angle_batch,
    angle_token,
    T,
    half,
    D,
    q_heads,
    k_heads,
    direction,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """One program for a token of a batch row; ``direction`` is 1 forward and -1 backward."""
    program = tl.program_id(0).to(tl.int64)
    b = program // T
    t = program % T
    lanes = tl.arange(0, HALF)
    angles = b * angle_batch + t * angle_token + lanes
    c = tl.load(cos + angles, mask=lanes < half, other=1.0).to(tl.float32)
    s = tl.load(sin + angles, mask=lanes < half, other=0.0).to(tl.float32) * direction
    rotate_heads(
        q, q_out, c, s, b * q_batch + t * q_token, b * qo_batch + t * qo_token, q_head, qo_head, q_heads, half, D,
        Q_HEADS, HALF, REST,
    )  # fmt: skip
    rotate_heads(
        k, k_out, c, s, b * k_batch + t * k_token, b * ko_batch + t * ko_token, k_head, ko_head, k_heads, half, D,
        K_HEADS, HALF, REST,
    )  # fmt: skip


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    """See :func:`automodel_kernels.ops.rope`."""
    if unsqueeze_dim == 2:
        q_out, k_out = rope_op(q.transpose(1, 2), k.transpose(1, 2), cos, sin, False)
        return q_out.transpose(1, 2), k_out.transpose(1, 2)
    return rope_op(q, k, cos, sin, False)


@torch.library.custom_op("automodel::rope", mutates_args=())
def rope_op(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """Rotate ``[B, heads, T, D]`` query and key; in memory the outputs are ``[B, T, heads, D]``."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    q_out, k_out = _empty(q), _empty(k)
    B, q_heads, T, D = q.shape
    half = cos.shape[-1] // 2
    rest = D - 2 * half
    launch(
        rope_kernel,
        (B * T,),
        q.device,
        q,
        k,
        q_out,
        k_out,
        cos,
        sin,
        *(stride for x in (q, k, q_out, k_out) for stride in x.stride()[:3]),
        cos.stride(0) if cos.shape[0] > 1 else 0,
        cos.stride(1),
        T,
        half,
        D,
        q_heads,
        k.shape[1],
        -1.0 if backward else 1.0,
        Q_HEADS=triton.next_power_of_2(q_heads),
        K_HEADS=triton.next_power_of_2(k.shape[1]),
        HALF=max(1, triton.next_power_of_2(half)),
        REST=triton.next_power_of_2(rest) if rest else 0,
        num_warps=4,
    )
    return q_out, k_out


@rope_op.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    return _empty(q), _empty(k)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.backward_pass = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    grads = rope_op(dq, dk, *ctx.saved_tensors, not ctx.backward_pass)
    return (*grads, None, None, None)


rope_op.register_autograd(_backward, setup_context=_setup)


def _empty(x: Tensor) -> Tensor:
    B, heads, T, D = x.shape
    return x.new_empty((B, T, heads, D)).transpose(1, 2)

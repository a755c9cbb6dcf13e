"""The two skinny products of a LoRA layer: ``s = x A^T`` and, in place, ``y += scaling s B^T``.

Both factors are read through their strides, so the backward pass hands in transposed views.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from automodel_kernels.triton_ops.common import INTERPRET, factor, launch, round_to

SHRINK_TILE = (64, 64)
EXPAND_TILE = (64, 128)
INTERPRETED_TILE = (16, 32)


@triton.jit
def shrink_kernel(
    x,
    a,
    s,
    x_stride,
    a_rank,
    a_in,
    num_rows,
    K,
    rank,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK: tl.constexpr,
):
    """``s[m, r] = sum_k x[m, k] a[r, k]`` for BLOCK_M rows, the whole rank at once."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((BLOCK_M, RANK), tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        x_mask = (rows < num_rows)[:, None] & (ks < K)[None, :]
        a_mask = (ks < K)[:, None] & (ranks < rank)[None, :]
        x_tile = tl.load(x + rows[:, None] * x_stride + ks[None, :], mask=x_mask, other=0.0)
        a_tile = tl.load(a + ranks[None, :] * a_rank + ks[:, None] * a_in, mask=a_mask, other=0.0)
        total = tl.dot(factor(x_tile), factor(a_tile), total, input_precision="ieee")
    inside = (rows < num_rows)[:, None] & (ranks < rank)[None, :]
    tl.store(s + rows[:, None] * rank + ranks[None, :], round_to(total, s.dtype.element_ty), mask=inside)


@triton.jit
def add_expand_kernel(
    y,
    s,
    b,
    y_stride,
    s_stride,
    b_out,
    b_rank,
    num_rows,
    num_out,
    rank,
    scaling,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RANK: tl.constexpr,
):
    """``y[m, n] += scaling sum_r s[m, r] b[n, r]`` on one tile; the sum is float32 and rounded once."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, RANK)
    s_mask = (rows < num_rows)[:, None] & (ranks < rank)[None, :]
    b_mask = (ranks < rank)[:, None] & (cols < num_out)[None, :]
    s_tile = tl.load(s + rows[:, None] * s_stride + ranks[None, :], mask=s_mask, other=0.0)
    b_tile = tl.load(b + cols[None, :].to(tl.int64) * b_out + ranks[:, None] * b_rank, mask=b_mask, other=0.0)
    product = tl.dot(factor(s_tile), factor(b_tile), input_precision="ieee")
    inside = (rows < num_rows)[:, None] & (cols < num_out)[None, :]
    target = y + rows[:, None] * y_stride + cols[None, :]
    base = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, round_to(base + scaling * product, y.dtype.element_ty), mask=inside)


@torch.library.custom_op("automodel::lora_shrink", mutates_args=())
def shrink(x: Tensor, lora_a: Tensor) -> Tensor:
    """``x [N, H]`` and ``lora_a [r, H]`` (any strides) give ``[N, r]`` in x's dtype."""
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(x.shape[0], lora_a.shape[0])
    block_m, block_k = INTERPRETED_TILE if INTERPRET.value else SHRINK_TILE
    launch(
        shrink_kernel,
        (triton.cdiv(x.shape[0], block_m),),
        x.device,
        x,
        lora_a,
        out,
        x.stride(0),
        lora_a.stride(0),
        lora_a.stride(1),
        x.shape[0],
        x.shape[1],
        lora_a.shape[0],
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        RANK=_padded(lora_a.shape[0]),
        num_warps=4,
    )
    return out


@shrink.register_fake
def _(x: Tensor, lora_a: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], lora_a.shape[0])


@torch.library.custom_op("automodel::lora_add_expand_", mutates_args=("y",))
def add_expand_(y: Tensor, s: Tensor, lora_b: Tensor, scaling: float) -> None:
    """``y [N, O] += scaling s [N, r] @ lora_b [O, r].T`` (lora_b of any strides)."""
    assert y.stride(1) == 1, "the base product is freshly made, hence contiguous"
    s = s.contiguous()
    block_m, block_n = INTERPRETED_TILE if INTERPRET.value else EXPAND_TILE
    launch(
        add_expand_kernel,
        (triton.cdiv(y.shape[0], block_m), triton.cdiv(y.shape[1], block_n)),
        y.device,
        y,
        s,
        lora_b,
        y.stride(0),
        s.stride(0),
        lora_b.stride(0),
        lora_b.stride(1),
        y.shape[0],
        y.shape[1],
        lora_b.shape[1],
        scaling,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        RANK=_padded(lora_b.shape[1]),
        num_warps=4,
    )


@add_expand_.register_fake
def _(y: Tensor, s: Tensor, lora_b: Tensor, scaling: float) -> None:
    return None


def _padded(rank: int) -> int:
    """Tensor cores take at least 16 columns."""
    return max(16, triton.next_power_of_2(rank))

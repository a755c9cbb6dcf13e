"""RMSNorm over rows of H numbers, with a fused residual addition.

``t = x + residual``, ``r = rsqrt(mean(t^2) + eps)``, ``n = t r``, ``y = n w`` (``1 + w`` in the gemma order);
``dt = r (w dy - n mean(n w dy)) + d(residual stream)``, ``dw = sum over rows of n dy``.
Each program of the backward pass owns a fixed set of rows and one row of partial sums: no atomics, so bits repeat.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from automodel_kernels.triton_ops.common import launch, num_warps_for, round_to, rows_contiguous

TILE = 4096
"""Elements of a row block: rows of short norms (heads of 128) share a program."""
MAX_ROWS = 8
"""With 16 rows of 128 the gemma backward pass spills registers on sm_90."""
MAX_H = 65536


@triton.jit
def forward_kernel(
    x,
    residual,
    weight,
    y,
    total_out,
    rstd_out,
    x_stride,
    residual_stride,
    num_rows,
    H,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    GEMMA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of one program."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (cols < H)[None, :]
    t = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        t += tl.load(residual + rows[:, None] * residual_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        rounded = round_to(t, total_out.dtype.element_ty)
        tl.store(total_out + rows[:, None] * H + cols[None, :], rounded, mask=inside)
        t = rounded.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(t * t, 1) / H + eps)
    tl.store(rstd_out + rows, rstd, mask=rows < num_rows)
    n = t * rstd[:, None]
    w = tl.load(weight + cols, mask=cols < H, other=0.0).to(tl.float32)
    if GEMMA:
        w += 1.0
    else:
        n = round_to(n, x.dtype.element_ty).to(tl.float32)
    out = round_to(n * w[None, :], y.dtype.element_ty)
    tl.store(y + rows[:, None] * H + cols[None, :], out, mask=inside)


@triton.jit
def backward_kernel(
    dy,
    d_total,
    total,
    weight,
    rstd_in,
    dx,
    dw_partial,
    dy_stride,
    d_total_stride,
    total_stride,
    num_rows,
    H,
    HAS_D_TOTAL: tl.constexpr,
    GEMMA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every ``num_programs``-th row block; the weight's partial gradient is row ``program_id`` of ``dw_partial``."""
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    w = tl.load(weight + cols, mask=cols < H, other=0.0).to(tl.float32)
    if GEMMA:
        w += 1.0
    dw = tl.zeros((BLOCK,), tl.float32)
    for first in range(program * ROWS, num_rows, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        inside = (rows < num_rows)[:, None] & (cols < H)[None, :]
        g = tl.load(dy + rows[:, None] * dy_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        t = tl.load(total + rows[:, None] * total_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_in + rows, mask=rows < num_rows, other=0.0)
        n = t * rstd[:, None]
        wg = g * w[None, :]
        dt = rstd[:, None] * (wg - n * (tl.sum(n * wg, 1) / H)[:, None])
        if HAS_D_TOTAL:
            offsets = rows[:, None] * d_total_stride + cols[None, :]
            dt += tl.load(d_total + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + rows[:, None] * H + cols[None, :], round_to(dt, dx.dtype.element_ty), mask=inside)
        if not GEMMA:
            n = round_to(n, total.dtype.element_ty).to(tl.float32)
        dw += tl.sum(n * g, 0)
    tl.store(dw_partial + program.to(tl.int64) * H + cols, dw, mask=cols < H)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, order: str, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`automodel_kernels.ops.rms_norm`."""
    H = x.shape[-1]
    if H > MAX_H:
        raise ValueError(f"H={H}: the kernel holds a row in registers, up to {MAX_H}. Use use_backend('torch').")
    flat = rows_contiguous(x.reshape(-1, H))
    flat_residual = None if residual is None else rows_contiguous(residual.reshape(-1, H))
    y, total, _ = rms_norm_op(flat, flat_residual, weight.contiguous(), eps, order == "gemma")
    return y.reshape(x.shape) if residual is None else (y.reshape(x.shape), total.reshape(x.shape))


@torch.library.custom_op("automodel::rms_norm", mutates_args=())
def rms_norm_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, gemma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y [N, H]``, the residual stream ``[N, H]`` (empty without a residual) and ``rstd [N]``."""
    y, total, rstd = _outputs(x, residual, weight, gemma)
    rows, block = tile(x.shape[1])
    launch(
        forward_kernel,
        (triton.cdiv(x.shape[0], rows),),
        x.device,
        x,
        x if residual is None else residual,
        weight,
        y,
        total,
        rstd,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        x.shape[0],
        x.shape[1],
        eps,
        HAS_RESIDUAL=residual is not None,
        GEMMA=gemma,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps_for(rows * block),
    )
    return y, total, rstd


@rms_norm_op.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, gemma: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, residual, weight, gemma)


@torch.library.custom_op("automodel::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    dy: Tensor, d_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor, gemma: bool
) -> tuple[Tensor, Tensor]:
    """``dx [N, H]`` and ``dw [H]``."""
    num, H = total.shape
    rows, block = tile(H)
    programs = max(1, min(triton.cdiv(num, rows), _num_programs(total.device)))
    dx = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    partial = torch.empty(programs, H, dtype=torch.float32, device=total.device)
    launch(
        backward_kernel,
        (programs,),
        total.device,
        dy,
        dy if d_total is None else d_total,
        total,
        weight,
        rstd,
        dx,
        partial,
        dy.stride(0),
        0 if d_total is None else d_total.stride(0),
        total.stride(0),
        num,
        H,
        HAS_D_TOTAL=d_total is not None,
        GEMMA=gemma,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps_for(rows * block),
    )
    return dx, partial.sum(0).to(weight.dtype)


@rms_norm_backward.register_fake
def _(
    dy: Tensor, d_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor, gemma: bool
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _, ctx.gemma = inputs
    _, total, rstd = output
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total if ctx.has_residual else x, weight, rstd)


def _backward(ctx: Any, dy: Tensor | None, d_total: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    total, weight, rstd = ctx.saved_tensors
    if dy is None:
        d_residual = d_total if ctx.has_residual else None
        return d_residual, d_residual, None, None, None
    d_stream = None if d_total is None or not ctx.has_residual else rows_contiguous(d_total)
    dx, dw = rms_norm_backward(rows_contiguous(dy), d_stream, total, weight, rstd, ctx.gemma)
    return dx, dx if ctx.has_residual else None, dw, None, None


rms_norm_op.register_autograd(_backward, setup_context=_setup)


def _outputs(x: Tensor, residual: Tensor | None, weight: Tensor, gemma: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = x.dtype if gemma else torch.promote_types(x.dtype, weight.dtype)
    y = x.new_empty(x.shape, dtype=dtype)
    total = x.new_empty(x.shape if residual is not None else (0, x.shape[1]))
    return y, total, x.new_empty(x.shape[0], dtype=torch.float32)


def tile(H: int) -> tuple[int, int]:
    """Rows of a program, and the padded row length."""
    block = max(16, triton.next_power_of_2(H))
    return max(1, min(MAX_ROWS, TILE // block)), block


def _num_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count

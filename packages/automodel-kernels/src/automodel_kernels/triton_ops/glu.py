"""Gated linear units, elementwise over ``[N, I]``: ``h = a(g) u``, ``dg = dh u a'(g)``, ``du = dh a(g)``."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from automodel_kernels.triton_ops.common import launch, round_to, rows_contiguous, tanh

MAX_BLOCK = 1024
KINDS = {"silu": 0, "gelu_tanh": 1, "gelu_erf": 2}


@triton.jit
def activation(g, KIND: tl.constexpr):
    """``a(g)`` and ``a'(g)`` in float32; KIND 0 is SiLU, 1 GELU by tanh, 2 GELU by erf."""
    if KIND == 0:
        s = tl.sigmoid(g)
        value = g * s
        slope = s * (1.0 + g * (1.0 - s))
    elif KIND == 1:
        t = tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))
        value = 0.5 * g * (1.0 + t)
        slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * g * g)
    else:
        cdf = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        value = g * cdf
        slope = cdf + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    return value, slope


@triton.jit
def forward_kernel(gate, up, out, gate_stride, up_stride, width, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one row; offsets of rows are 64 bit."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    g = tl.load(gate + row * gate_stride + cols, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + cols, mask=inside, other=0.0).to(tl.float32)
    value, _slope = activation(g, KIND)
    tl.store(out + row * width + cols, round_to(value * u, out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dh, gate, up, dg, du, dh_stride, gate_stride, up_stride, width, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of one row; the activation is computed again, nothing but gate and up is saved."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    d = tl.load(dh + row * dh_stride + cols, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + cols, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + cols, mask=inside, other=0.0).to(tl.float32)
    value, slope = activation(g, KIND)
    kind = dg.dtype.element_ty
    tl.store(dg + row * width + cols, round_to(d * u * slope, kind), mask=inside)
    tl.store(du + row * width + cols, round_to(d * value, kind), mask=inside)


@torch.library.custom_op("automodel::glu", mutates_args=())
def glu(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``a(gate) * up`` of ``[N, I]`` tensors; kind is ``silu``, ``gelu_tanh`` or ``gelu_erf``."""
    gate, up = rows_contiguous(gate), rows_contiguous(up)
    out = gate.new_empty(gate.shape)
    block, grid = _grid(gate)
    launch(
        forward_kernel,
        grid,
        gate.device,
        gate,
        up,
        out,
        gate.stride(0),
        up.stride(0),
        gate.shape[1],
        KIND=KINDS[kind],
        BLOCK=block,
        num_warps=4,
    )
    return out


@glu.register_fake
def _(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("automodel::glu_backward", mutates_args=())
def glu_backward(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """``d gate`` and ``d up``, ``[N, I]`` each."""
    dh, gate, up = rows_contiguous(dh), rows_contiguous(gate), rows_contiguous(up)
    dg, du = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
    block, grid = _grid(gate)
    launch(
        backward_kernel,
        grid,
        gate.device,
        dh,
        gate,
        up,
        dg,
        du,
        dh.stride(0),
        gate.stride(0),
        up.stride(0),
        gate.shape[1],
        KIND=KINDS[kind],
        BLOCK=block,
        num_warps=4,
    )
    return dg, du


@glu_backward.register_fake
def _(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
    return (*glu_backward(dh, *ctx.saved_tensors, ctx.kind), None)


glu.register_autograd(_backward, setup_context=_setup)


def _grid(gate: Tensor) -> tuple[int, tuple[int, int]]:
    num, width = gate.shape
    block = max(16, min(MAX_BLOCK, triton.next_power_of_2(max(1, width))))
    return block, (num, triton.cdiv(width, block))

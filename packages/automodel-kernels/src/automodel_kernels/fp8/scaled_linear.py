"""``x @ dequantised(weight).T`` as one FP8 product, with the gradient of x.

Letters: N tokens, H input features, O output features.
"""

from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
_TINY = 1e-12


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 values and float32 scales ``[rows, 1]`` with ``values * scales ~ x``, the largest entry at 448."""
    scale = x.detach().abs().amax(dim=-1, keepdim=True).float().clamp(min=_TINY) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def frozen_fp8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """``y = x W^T`` and ``dx = dy W`` with W frozen in FP8; both products are FP8 with a scale for every row.

    Args:
        x: ``[..., H]``.
        weight: ``[O, H]`` e4m3; weight_scale: ``[O, 1]`` float32.

    Returns: ``[..., O]`` in x's dtype (inside, bfloat16 where the device has no other output).
    """
    return _FrozenFP8Linear.apply(x, weight, weight_scale)


class _FrozenFP8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, weight_scale)
        flat = x.reshape(-1, x.shape[-1])
        y = _scaled_product(flat, weight, weight_scale.t().contiguous())
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        weight, weight_scale = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        # The scale belongs to W's rows, which this product sums over: it moves to dy.
        scaled = dy * weight_scale.reshape(1, -1).to(dy.dtype)
        ones = torch.ones(1, weight.shape[1], dtype=torch.float32, device=weight.device)
        dx = _scaled_product(scaled, weight.t().contiguous(), ones)
        return dx.reshape(*grad.shape[:-1], weight.shape[1]), None, None


def _scaled_product(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """``x [N, K]`` times ``weight [M, K]`` transposed, weight_scale ``[1, M]``; x is quantised by row here."""
    if x.shape[0] == 0:
        return x.new_zeros(0, weight.shape[0])
    values, scale = quantize_rows(x)
    out = torch._scaled_mm(
        values, weight.t(), scale_a=scale, scale_b=weight_scale, out_dtype=torch.bfloat16, use_fast_accum=False
    )
    return out.to(x.dtype)

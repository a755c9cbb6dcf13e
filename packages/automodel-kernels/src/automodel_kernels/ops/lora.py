"""LoRA linear: the adapter's product is added into the base product in place, and the frozen weight gets no gradient.

Letters: N tokens, H input features, O output features, r rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend, is_dtensor
from automodel_kernels.ops.dropout import draw_seed, dropout_scale
from automodel_kernels.ops.lora_product import add_expand, shrink


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    magnitude: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    strict: bool = False,
) -> Tensor:
    """``y = x W^T + b + scaling D(x) A^T B^T``; saved: x and the rank-r product, never a mask or a second y.

    ``ds = scaling dy B``, ``dB = scaling dy^T s``, ``dA = ds^T D(x)``, ``dx = dy W + D(ds A)``.

    Args:
        x: ``[..., H]``.
        weight: ``[O, H]``, frozen or trained; its gradient is formed only if it is wanted.
        lora_a: ``[r, H]``; lora_b: ``[O, r]``; cast to x's dtype for the products (float32 masters are fine).
        bias: ``[O]``.
        magnitude: DoRA's ``[O]``.
        dropout_p: dropout of the adapter's input; the mask is drawn again from ``seed`` in the backward pass.
        seed: dropout's seed; drawn from torch's CPU generator when None, so ``torch.manual_seed`` reproduces a run.
        strict: a fallback to PyTorch is an error.

    Raises: ValueError: shapes disagree, or DoRA with dropout.
    """
    _check(x, weight, lora_a, lora_b, bias, magnitude, dropout_p)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
    backend = choose_backend("lora_linear", x, weight, lora_a, lora_b, strict=strict)
    if any(is_dtensor(t) for t in (x, weight, lora_a, lora_b)):
        return _with_torch_ops(x, weight, lora_a, lora_b, scaling, bias, magnitude, dropout_p)
    if dropout_p and seed is None:
        seed = draw_seed()
    if magnitude is not None:
        y = _LoRALinear.apply(x, weight, None, lora_a, lora_b, scaling, dropout_p, seed, backend)
        y = y * (magnitude / reference.adapted_row_norm(weight, lora_a, lora_b, scaling)).to(y.dtype)
        return y if bias is None else y + bias
    return _LoRALinear.apply(x, weight, bias, lora_a, lora_b, scaling, dropout_p, seed, backend)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        dropout_p: float,
        seed: int | None,
        backend: str,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        mask = dropout_scale(flat, dropout_p, seed)
        s = shrink(flat if mask is None else flat * mask, lora_a, backend)
        y = F.linear(flat, weight, bias)
        add_expand(y, s, lora_b, scaling, backend)
        ctx.save_for_backward(flat, weight, lora_a, lora_b, s)
        ctx.options = (scaling, dropout_p, seed, backend)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, lora_a, lora_b, s = ctx.saved_tensors
        scaling, dropout_p, seed, backend = ctx.options
        need_x, need_weight, need_bias, need_a, need_b = ctx.needs_input_grad[:5]
        dy = grad.reshape(-1, grad.shape[-1]).contiguous()
        mask = dropout_scale(flat, dropout_p, seed)
        ds = shrink(dy, lora_b.t(), backend) * scaling
        dx = dw = db = da = d_lora_b = None
        if need_x:
            dx = dy @ weight
            if mask is None:
                add_expand(dx, ds, lora_a.t(), 1.0, backend)
            else:
                dx = dx.addcmul_(ds @ lora_a, mask)
            dx = dx.reshape(*grad.shape[:-1], flat.shape[-1])
        if need_weight:
            dw = dy.t() @ flat
        if need_bias:
            db = dy.sum(0)
        if need_a:
            da = ds.t() @ (flat if mask is None else flat * mask)
        if need_b:
            d_lora_b = (dy.t() @ s).mul_(scaling)
        return dx, dw, db, da, d_lora_b, None, None, None, None


def _with_torch_ops(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    bias: Tensor | None,
    magnitude: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """DTensors: plain differentiable ops, so that each one is sharded by its own rule."""
    if magnitude is not None:
        return reference.lora_linear(x, weight, lora_a, lora_b, scaling=scaling, bias=bias, magnitude=magnitude)
    y = F.linear(x, weight, bias)
    return y + scaling * F.linear(F.linear(F.dropout(x, dropout_p), lora_a), lora_b)


def _check(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    bias: Tensor | None,
    magnitude: Tensor | None,
    dropout_p: float,
) -> None:
    out_features, in_features = weight.shape
    rank = lora_a.shape[0]
    if x.shape[-1] != in_features or lora_a.shape != (rank, in_features) or lora_b.shape != (out_features, rank):
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, lora_a {tuple(lora_a.shape)}, "
            f"lora_b {tuple(lora_b.shape)}: they must be [..., H], [O, H], [r, H] and [O, r]."
        )
    for name, vector in (("bias", bias), ("magnitude", magnitude)):
        if vector is not None and vector.shape != (out_features,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}: it must be ({out_features},).")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p}: it must be in [0, 1).")
    if magnitude is not None and dropout_p:
        raise ValueError(
            f"dropout_p={dropout_p} with a DoRA magnitude: DoRA's norm has no defined value under dropout here. "
            "Set dropout to 0."
        )

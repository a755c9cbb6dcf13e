"""A gated MLP whose three projections carry LoRA adapters, as one autograd node.

Saved: the input, gate, up, and four rank-r products. The activation ``h`` (as large as gate) is computed again.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_kernels.backend import KernelFallbackError, choose_backend, is_dtensor
from automodel_kernels.ops.lora_product import add_expand, shrink

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "silu")


@dataclass(frozen=True)
class LoRAWeights:
    """One projection: frozen ``weight [O, H]``, ``lora_a [r, H]``, ``lora_b [O, r]`` and ``scaling``."""

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    scaling: float


def lora_glu_mlp(
    x: Tensor, gate: LoRAWeights, up: LoRAWeights, down: LoRAWeights, *, activation: str = "silu", strict: bool = False
) -> Tensor:
    """``down(act(gate(x)) * up(x))`` with LoRA on all three; gate and up share one stacked rank-r product.

    Args:
        x: ``[..., H]``, in the dtype of the frozen weights.
        gate, up, down: frozen weights with adapters; no bias, no dropout.
        activation: ``"silu"``, ``"gelu_tanh"`` or ``"gelu_erf"``.
        strict: a fallback to PyTorch is an error.

    Raises: ValueError: an unknown activation, or a base weight that wants a gradient. KernelFallbackError: DTensors.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: it must be one of {', '.join(ACTIVATIONS)}.")
    tensors = [x] + [t for p in (gate, up, down) for t in (p.weight, p.lora_a, p.lora_b)]
    if any(is_dtensor(t) for t in tensors):
        raise KernelFallbackError(
            "lora_glu_mlp got a DTensor: it takes whole tensors. Apply lora_linear to each layer."
        )
    if any(p.weight.requires_grad for p in (gate, up, down)):
        raise ValueError(
            "a base weight requires a gradient: lora_glu_mlp is for frozen bases. Use lora_linear instead."
        )
    backend = choose_backend("lora_glu_mlp", *tensors, strict=strict)
    adapters = [t.to(x.dtype) for p in (gate, up, down) for t in (p.lora_a, p.lora_b)]
    weights = [p.weight for p in (gate, up, down)]
    scalings = tuple(p.scaling for p in (gate, up, down))
    return _LoRAGluMLP.apply(x, *weights, *adapters, scalings, activation, backend)


class _LoRAGluMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        wg, wu, wd, ag, bg, au, bu, ad, bd, (sg, su, sd), activation, backend = args
        flat = x.reshape(-1, x.shape[-1])
        stacked = shrink(flat, torch.cat((ag, au)), backend)
        s_gate, s_up = (part.contiguous() for part in stacked.split((ag.shape[0], au.shape[0]), dim=1))
        gate, up = F.linear(flat, wg), F.linear(flat, wu)
        add_expand(gate, s_gate, bg, sg, backend)
        add_expand(up, s_up, bu, su, backend)
        h = _act(gate, activation) * up
        s_down = shrink(h, ad, backend)
        y = F.linear(h, wd)
        add_expand(y, s_down, bd, sd, backend)
        ctx.save_for_backward(flat, gate, up, s_gate, s_up, s_down, wg, wu, wd, ag, bg, au, bu, ad, bd)
        ctx.options = ((sg, su, sd), activation, backend)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, gate, up, s_gate, s_up, s_down, wg, wu, wd, ag, bg, au, bu, ad, bd = ctx.saved_tensors
        (sg, su, sd), activation, backend = ctx.options
        dy = grad.reshape(-1, grad.shape[-1]).contiguous()
        with torch.enable_grad():
            gate_leaf = gate.detach().requires_grad_()
            activated = _act(gate_leaf, activation)
        h = activated.detach() * up
        dh, dad, dbd = _projection_backward(dy, h, wd, ad, bd, s_down, sd, backend)
        d_up = dh * activated.detach()
        (d_gate,) = torch.autograd.grad(activated, gate_leaf, dh * up)
        dx, dau, dbu = _projection_backward(d_up, flat, wu, au, bu, s_up, su, backend)
        dx_gate, dag, dbg = _projection_backward(d_gate, flat, wg, ag, bg, s_gate, sg, backend)
        dx = dx.add_(dx_gate).reshape(*grad.shape[:-1], flat.shape[-1])
        return dx, None, None, None, dag, dbg, dau, dbu, dad, dbd, None, None, None


def _projection_backward(
    dy: Tensor, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, s: Tensor, scaling: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    ds = shrink(dy, lora_b.t(), backend) * scaling
    dx = dy @ weight
    add_expand(dx, ds, lora_a.t(), 1.0, backend)
    return dx, ds.t() @ x, (dy.t() @ s).mul_(scaling)


def _act(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")

"""Round values to what an integer type can hold, and let gradients pass as if nothing had been rounded.

Shapes: N tokens, G weights that share a scale.
"""

from typing import Any

import torch

_INT4 = (-8, 7)
_INT8 = (-128, 127)


def fake_quantize_weight(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Symmetric 4-bit weights: each run of ``group_size`` inputs of a row shares a scale of ``max|w| / 7.5``.

    Args:
        weight: ``[out, in]``, ``in`` a multiple of ``group_size``.
        group_size: G.

    Returns: ``[out, in]`` in the weight's dtype; the gradient of values that were clipped is 0, of others 1.
    Source: the integers of torchao's ``IntxWeightOnlyConfig(weight_dtype=torch.int4)``.
    """
    groups = weight.unflatten(-1, (-1, group_size))
    low, high = _INT4
    scale = groups.detach().float().abs().amax(dim=-1, keepdim=True) / ((high - low) / 2)
    return _Round.apply(groups, _at_least_eps(scale), torch.zeros_like(scale), _INT4).flatten(-2)


def fake_quantize_tokens(x: torch.Tensor) -> torch.Tensor:
    """Asymmetric 8-bit activations: each token has a scale and a zero point from its own range.

    Args:
        x: ``[..., in]``.

    Returns: ``[..., in]`` in the dtype of ``x``; gradients as for weights.
    Source: the integers of torchao's ``Int8DynamicActivationIntxWeightConfig``.
    """
    values = x.detach().float()
    low, high = _INT8
    smallest, largest = values.amin(-1, keepdim=True).clamp(max=0.0), values.amax(-1, keepdim=True).clamp(min=0.0)
    scale = _at_least_eps((largest - smallest) / (high - low))
    zero_point = (low - torch.round(smallest / scale)).clamp(low, high)
    return _Round.apply(x, scale, zero_point, _INT8)


def _at_least_eps(scale: torch.Tensor) -> torch.Tensor:
    return scale.clamp(min=torch.finfo(torch.float32).eps)


class _Round(torch.autograd.Function):
    """``x -> scale * (clip(round(x / scale) + zero, low, high) - zero)``; gradient 1 where nothing was clipped."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bounds: tuple[int, int]
    ) -> torch.Tensor:
        low, high = bounds
        codes = torch.round(x.float() * (1.0 / scale)) + zero_point
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return ((codes.clamp(low, high) - zero_point) * scale).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return grad_outputs[0] * kept, None, None, None

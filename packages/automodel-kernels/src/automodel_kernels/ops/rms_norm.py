"""RMSNorm, with the residual addition fused where there is one."""

from typing import Literal

from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend

Order = Literal["llama", "gemma"]
ORDERS = ("gemma", "llama")


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    order: Order = "llama",
    residual: Tensor | None = None,
    strict: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``y = x r w`` with ``r = rsqrt(mean(x^2) + eps)``; ``dx = r (w dy - x r^2 mean(w dy x))``, ``dw = sum(dy x r)``.

    Args:
        x: ``[..., H]``.
        weight: ``[H]``; ``order="gemma"`` uses ``1 + weight``.
        order: where the result is rounded: ``"llama"`` before the product with the weight, ``"gemma"`` after it.
        residual: ``[..., H]``, added to x first; the sum is returned as the next residual stream.
        strict: a fallback to PyTorch is an error.

    Returns: ``y``, or ``(y, x + residual)``.
    Raises: ValueError: shapes disagree or an unknown order.
    """
    if weight.ndim != 1 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weight {tuple(weight.shape)}: they must be [..., H] and [H]. "
            "Normalise over the last dim."
        )
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: it must be one of {', '.join(ORDERS)}.")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}: they must be equal.")
    if choose_backend("rms_norm", x, weight, residual, strict=strict) == "triton":
        from automodel_kernels.triton_ops.rms_norm import rms_norm as triton_rms_norm

        return triton_rms_norm(x, weight, eps, order, residual)
    return reference.rms_norm(x, weight, eps=eps, order=order, residual=residual)

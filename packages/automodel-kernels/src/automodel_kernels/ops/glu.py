"""Gated linear units: the activation and the product in one pass, nothing but the two inputs saved."""

from typing import Literal

from torch import Tensor

from automodel_kernels import reference
from automodel_kernels.backend import choose_backend


def swiglu(gate: Tensor, up: Tensor, *, strict: bool = False) -> Tensor:
    """``h = silu(g) u``; ``dg = dh u (s + g s (1 - s))`` with ``s = sigmoid(g)``, ``du = dh silu(g)``.

    Args:
        gate, up: equal shapes and dtypes.
        strict: a fallback to PyTorch is an error.

    Raises: ValueError: shapes or dtypes differ.
    """
    _check(gate, up)
    if choose_backend("swiglu", gate, up, strict=strict) == "triton":
        return _triton(gate, up, "silu")
    return reference.swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["tanh", "none"] = "tanh", strict: bool = False) -> Tensor:
    """``h = gelu(g) u``; the gradients follow from ``gelu'``.

    Args:
        gate, up: equal shapes and dtypes.
        approximate: ``"tanh"`` (Gemma, transformers' ``gelu_pytorch_tanh``) or ``"none"`` (erf, ``gelu``).
        strict: a fallback to PyTorch is an error.

    Raises: ValueError: shapes or dtypes differ, or an unknown approximation.
    """
    _check(gate, up)
    if approximate not in ("tanh", "none"):
        raise ValueError(f"approximate={approximate!r}: it must be 'tanh' or 'none'.")
    if choose_backend("geglu", gate, up, strict=strict) == "triton":
        return _triton(gate, up, "gelu_tanh" if approximate == "tanh" else "gelu_erf")
    return reference.geglu(gate, up, approximate=approximate)


def _triton(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    from automodel_kernels.triton_ops.glu import glu

    width = gate.shape[-1]
    return glu(gate.reshape(-1, width), up.reshape(-1, width), kind).reshape(gate.shape)


def _check(gate: Tensor, up: Tensor) -> None:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate is {tuple(gate.shape)} {gate.dtype}, up is {tuple(up.shape)} {up.dtype}: they must be equal. "
            "Split a fused gate_up projection with chunk(2, dim=-1)."
        )

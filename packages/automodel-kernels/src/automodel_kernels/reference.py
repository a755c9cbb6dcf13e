"""The plain PyTorch twin of every op: the fallback on any device, and what the kernels are tested against.

Letters: N tokens, V vocabulary, H hidden size, B batch, T sequence, D head size, R rotated size (R <= D), I MLP size,
O output features, r LoRA rank. Statistics are computed in float32, or in float64 for float64 inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: float32, or float64 where the input is float64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = 1e-6, order: str = "llama", residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """``y = x * rsqrt(mean(x^2) + eps) * w`` over the last dim, optionally after adding a residual.

    ``order="llama"`` rounds to the input dtype before multiplying by ``w``; ``order="gemma"`` multiplies by ``1 + w``
    in float32 and rounds afterwards. These are the two orders of transformers' models.

    Args:
        x: ``[..., H]``.
        weight: ``[H]``.
        residual: ``[..., H]``, added to ``x`` first (in x's dtype).

    Returns: ``y``, or ``(y, x + residual)`` with a residual: the sum is the next residual stream.
    """
    total = x if residual is None else x + residual
    wide = total.to(wide_dtype(x.dtype))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if order == "llama":
        y = weight * normed.to(x.dtype)
    else:
        y = (normed * (1.0 + weight.to(normed.dtype))).to(x.dtype)
    return y if residual is None else (y, total)


def rope_cos_sin(
    position_ids: Tensor,
    inv_freq: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    scaling: float = 1.0,
    mrope_section: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles at explicit positions, computed in float32.

    Args:
        position_ids: ``[B, T]`` (packed rows restart at 0), or ``[3, B, T]`` (time, height, width) with M-RoPE.
        inv_freq: ``[R / 2]``.
        mrope_section: how many of the R / 2 frequencies follow time, height and width (M-RoPE of the Qwen2-VL family).

    Returns: two ``[B, T, R]`` tensors; the two halves are equal, as transformers lays them out.
    """
    angles = position_ids[..., None].to(torch.float32) * inv_freq.to(torch.float32)
    if mrope_section is not None:
        parts = angles.split(mrope_section, dim=-1)
        angles = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], dim=-1)
    doubled = torch.cat((angles, angles), dim=-1)
    return (doubled.cos() * scaling).to(dtype), (doubled.sin() * scaling).to(dtype)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate query and key by position: ``y = x * cos + rotate_half(x) * sin`` on the first R channels.

    Args:
        q, k: ``[B, heads, T, D]`` (``unsqueeze_dim=1``) or ``[B, T, heads, D]`` (``unsqueeze_dim=2``).
        cos, sin: ``[B, T, R]`` or ``[1, T, R]``; with R < D the last D - R channels pass through (partial rotary).
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    turned = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, elementwise, any equal shapes."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor, *, approximate: str = "tanh") -> Tensor:
    """``gelu(gate) * up``; ``approximate`` is ``"tanh"`` (Gemma) or ``"none"`` (erf): they differ by up to 1e-3."""
    return F.gelu(gate, approximate=approximate) * up


def token_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of each token, float32: ``lse - (1 - s) x_y - s mean(x) + z lse^2``; ignored tokens give 0.

    Args:
        logits: ``[N, V]``; with ``softcap`` they become ``c tanh(x / c)`` first.
        labels: ``[N]`` int64.
        z_loss: weight ``z`` of the squared log-normaliser.
        label_smoothing: weight ``s`` of the uniform target over the V classes.
    """
    wide = logits.to(wide_dtype(logits.dtype))
    if softcap is not None:
        wide = softcap * torch.tanh(wide / softcap)
    valid = labels != ignore_index
    lse = torch.logsumexp(wide, dim=-1)
    at_label = wide.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss = lse - (1.0 - label_smoothing) * at_label
    if label_smoothing:
        loss = loss - label_smoothing * wide.mean(-1)
    if z_loss:
        loss = loss + z_loss * lse.square()
    return torch.where(valid, loss, torch.zeros_like(loss))


def reduce_tokens(
    losses: Tensor, labels: Tensor, *, reduction: str, num_valid: Tensor | float | None = None, ignore_index: int = -100
) -> Tensor:
    """Reduce token losses: ``"none"``, ``"sum"``, or ``"mean"`` over ``num_valid`` (by default counted; 0 gives 0)."""
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if num_valid is None:
        num_valid = (labels != ignore_index).sum()
    if isinstance(num_valid, Tensor):
        return total / num_valid.clamp(min=1)
    return total / max(num_valid, 1)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    num_valid: Tensor | float | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of ``[..., V]`` logits; see :func:`token_cross_entropy`. No valid token gives 0, not NaN."""
    flat = labels.reshape(-1)
    losses = token_cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        flat,
        ignore_index=ignore_index,
        softcap=softcap,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )
    reduced = reduce_tokens(losses, flat, reduction=reduction, num_valid=num_valid, ignore_index=ignore_index)
    return reduced.reshape(labels.shape) if reduction == "none" else reduced


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    label_index: Tensor | None = None,
    reduction: str = "mean",
    num_valid: Tensor | float | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias``, written in the obvious way: the whole ``[N, V]`` logits exist.

    Args:
        hidden: ``[..., H]``.
        weight: ``[V, H]``.
        labels: ``[...]`` int64, already shifted.
        label_index: ``[n]`` flat positions to look at; the others count as ignored.
    """
    flat_labels = labels.reshape(-1)
    if label_index is not None:
        keep = torch.zeros_like(flat_labels, dtype=torch.bool).index_fill_(0, label_index, True)
        flat_labels = torch.where(keep, flat_labels, ignore_index)
    logits = F.linear(hidden, weight, bias)
    return cross_entropy(
        logits,
        flat_labels.reshape(labels.shape),
        reduction=reduction,
        num_valid=num_valid,
        ignore_index=ignore_index,
        softcap=softcap,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    magnitude: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``y = x W^T + b + scaling (x * mask) A^T B^T``; DoRA multiplies all but the bias by ``m / ||W + scaling B A||``.

    Args:
        x: ``[..., H]``; weight ``[O, H]``; lora_a ``[r, H]``; lora_b ``[O, r]``; bias ``[O]``.
        magnitude: DoRA's ``m``, ``[O]``; the norm in its denominator is taken as a constant, as the DoRA paper does.
        mask: dropout's mask already divided by ``1 - p``, in x's shape; it applies to the adapter's input alone.
    """
    dropped = x if mask is None else x * mask
    y = F.linear(x, weight) + scaling * F.linear(F.linear(dropped, lora_a), lora_b)
    if magnitude is not None:
        y = y * (magnitude / adapted_row_norm(weight, lora_a, lora_b, scaling))
    return y if bias is None else y + bias


def adapted_row_norm(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """``||W + scaling B A||`` of each row, ``[O]``, without gradient."""
    with torch.no_grad():
        return torch.linalg.vector_norm(weight + scaling * (lora_b @ lora_a).to(weight.dtype), dim=1)

"""What all cross-entropies share: options, the differentiable token loss, and how token losses become one number."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from automodel_core.loss.labels import IGNORE_INDEX

Reduction = Literal["sum", "mean", "none"]


@dataclass(frozen=True)
class TokenLossOptions:
    """Knobs of the token loss; the defaults are plain cross-entropy."""

    ignore_index: int = IGNORE_INDEX
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over the vocabulary, in [0, 1)."""
    z_loss: float = 0.0
    """Weight of ``logsumexp(logits) ** 2``, which keeps the normaliser near one (PaLM, arXiv:2204.02311)."""
    logit_softcapping: float = 0.0
    """``logits -> cap * tanh(logits / cap)``; 0 turns it off. For models whose forward does not do it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={self.label_smoothing}: it must be in [0, 1). Use 0 to turn it off.")
        if self.z_loss < 0.0:
            raise ValueError(f"z_loss={self.z_loss}: the weight must be >= 0. Use 0 to turn it off.")
        if self.logit_softcapping < 0.0:
            raise ValueError(f"logit_softcapping={self.logit_softcapping}: the cap must be >= 0. Use 0 to turn it off.")


def check_reduction(reduction: str) -> Reduction:
    """Raises: ValueError: not one of sum, mean, none."""
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction={reduction!r}: choose 'sum', 'mean' or 'none'. Training uses 'sum'.")
    return cast(Reduction, reduction)


def softcap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """``cap * tanh(logits / cap)``; identity for cap 0."""
    return cap * torch.tanh(logits / cap) if cap else logits


def token_losses(logits: torch.Tensor, labels: torch.Tensor, options: TokenLossOptions) -> torch.Tensor:
    """Cross-entropy of each token, by autograd.

    Args:
        logits: ``[N, V]``, float32 for a trustworthy result.
        labels: ``[N]`` int64.
        options: see ``TokenLossOptions``.

    Returns: ``[N]``; exactly 0, with zero gradient, where the label is ignored.
    """
    logits = softcap(logits, options.logit_softcapping)
    losses = F.cross_entropy(
        logits, labels, ignore_index=options.ignore_index, label_smoothing=options.label_smoothing, reduction="none"
    )
    if options.z_loss:
        log_normaliser = torch.logsumexp(logits, dim=-1)
        losses = losses + options.z_loss * log_normaliser.square() * (labels != options.ignore_index)
    return losses


def reduce_losses(
    total: torch.Tensor, labels: torch.Tensor, num_label_tokens: "torch.Tensor | int | None", options: TokenLossOptions
) -> torch.Tensor:
    """Divide a sum of token losses by the global label count, or by this batch's own where none is given."""
    return total / denominator(labels, num_label_tokens, options)


def denominator(
    labels: torch.Tensor, num_label_tokens: "torch.Tensor | int | None", options: TokenLossOptions
) -> "torch.Tensor | int":
    """The divisor, at least 1: with nothing supervised a loss is 0 / 1 and not 0 / 0."""
    if num_label_tokens is None:
        num_label_tokens = (labels != options.ignore_index).sum()
    if isinstance(num_label_tokens, torch.Tensor):
        return num_label_tokens.to(labels.device).clamp(min=1)
    return max(num_label_tokens, 1)


def replicated(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a DTensor as a plain tensor, differentiably; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_shapes(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises: ValueError: labels do not have one entry per row of logits or hidden states."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} for logits or hidden states {tuple(logits.shape)}: labels need all but the "
            "last dimension. Shift labels without cutting them: shift_labels keeps T."
        )

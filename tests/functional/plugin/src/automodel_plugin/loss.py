"""Focal cross-entropy: well-predicted tokens count less (Lin et al., 2017, arXiv:1708.02002)."""

import torch
import torch.nn.functional as F
from torch import Tensor


class FocalCrossEntropy:
    """Sum over label tokens of ``(1 - p)^gamma * -log p``, over ``num_label_tokens``.

    Args:
        gamma: 0 is plain cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, shift_labels: Tensor, num_label_tokens: Tensor) -> Tensor:
        """``logits [B, T, V]``, ``shift_labels [B, T]`` int64, already shifted; scalar float32."""
        losses = F.cross_entropy(logits.flatten(0, -2).float(), shift_labels.flatten(), reduction="none")
        return (losses * (1 - torch.exp(-losses)) ** self.gamma).sum() / num_label_tokens

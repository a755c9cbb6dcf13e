"""Cross-entropy over chunks of tokens, so float32 logits exist for one chunk at a time."""

import torch
from torch.utils.checkpoint import checkpoint

from automodel_core.loss.labels import IGNORE_INDEX, check_labels
from automodel_core.loss.reduction import (
    TokenLossOptions,
    check_reduction,
    check_shapes,
    reduce_losses,
    replicated,
    token_losses,
)


class ChunkedCrossEntropy:
    """Like ``MaskedCrossEntropy``, with the float32 copy of the logits recomputed chunk by chunk in backward.

    Args:
        chunk_len: tokens per chunk.
        ignore_index, reduction: as in ``MaskedCrossEntropy``.
        label_smoothing, z_loss, logit_softcapping: see ``TokenLossOptions``.
    """

    takes_hidden_states = False

    def __init__(
        self,
        chunk_len: int = 1024,
        ignore_index: int = IGNORE_INDEX,
        reduction: str = "sum",
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_softcapping: float = 0.0,
    ) -> None:
        if chunk_len < 1:
            raise ValueError(f"chunk_len={chunk_len}: a chunk has at least 1 token. Use 1024 unless memory is short.")
        self.chunk_len = chunk_len
        self.reduction = check_reduction(reduction)
        self.options = TokenLossOptions(ignore_index, label_smoothing, z_loss, logit_softcapping)

    def __call__(
        self, logits: torch.Tensor, shift_labels: torch.Tensor, num_label_tokens: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of one micro-batch; arguments, result and errors as in ``MaskedCrossEntropy``."""
        logits = replicated(logits)
        check_shapes(logits, shift_labels)
        labels = shift_labels.to(logits.device)
        vocab_size = logits.shape[-1]
        check_labels(labels, vocab_size, self.options.ignore_index)
        chunks = zip(
            logits.reshape(-1, vocab_size).split(self.chunk_len), labels.reshape(-1).split(self.chunk_len), strict=True
        )
        losses = [checkpoint(self._chunk, rows, targets, use_reentrant=False) for rows, targets in chunks]
        if self.reduction == "none":
            return torch.cat(losses).view(labels.shape)
        count = num_label_tokens if self.reduction == "sum" else None
        total = torch.stack([loss.sum() for loss in losses]).sum()
        return reduce_losses(total, labels, count, self.options)

    def _chunk(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return token_losses(rows.float(), targets, self.options)

"""Cross-entropy on whole logits, with ignored positions left out."""

import torch

from automodel_core.loss.labels import IGNORE_INDEX, check_labels
from automodel_core.loss.reduction import (
    TokenLossOptions,
    check_reduction,
    check_shapes,
    reduce_losses,
    replicated,
    token_losses,
)


class MaskedCrossEntropy:
    """Sum of token losses over the global number of label tokens.

    Args:
        fp32_upcast: compute in float32 whatever the logits' dtype.
        ignore_index: label of positions that do not count.
        reduction: ``sum`` divides by ``num_label_tokens``; ``mean`` by this batch's own label count; ``none`` returns
            token losses in the labels' shape, undivided.
        label_smoothing, z_loss, logit_softcapping: see ``TokenLossOptions``.
    """

    takes_hidden_states = False

    def __init__(
        self,
        fp32_upcast: bool = True,
        ignore_index: int = IGNORE_INDEX,
        reduction: str = "sum",
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_softcapping: float = 0.0,
    ) -> None:
        self.fp32_upcast = fp32_upcast
        self.reduction = check_reduction(reduction)
        self.options = TokenLossOptions(ignore_index, label_smoothing, z_loss, logit_softcapping)

    def __call__(
        self,
        logits: torch.Tensor,
        shift_labels: torch.Tensor,
        num_label_tokens: torch.Tensor | int | None = None,
        *,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of one micro-batch.

        Args:
            logits: ``[..., V]``; a DTensor is gathered.
            shift_labels: ``[...]`` int64, already shifted.
            num_label_tokens: label tokens of the *global* batch; None: of this one.
            mask: optional ``[...]``; positions where it is 0 do not count. Labels are left as they are.

        Returns: float32 scalar; 0, connected to the graph, when no label counts.
        Raises: ValueError: shapes disagree, or a label is outside the vocabulary.
        """
        logits = replicated(logits)
        check_shapes(logits, shift_labels)
        labels = shift_labels.to(logits.device)
        if mask is not None:
            labels = labels.masked_fill(mask.to(labels.device) == 0, self.options.ignore_index)
        vocab_size = logits.shape[-1]
        check_labels(labels, vocab_size, self.options.ignore_index)
        rows = logits.reshape(-1, vocab_size)
        losses = token_losses(rows.float() if self.fp32_upcast else rows, labels.reshape(-1), self.options)
        if self.reduction == "none":
            return losses.view(labels.shape)
        count = num_label_tokens if self.reduction == "sum" else None
        return reduce_losses(losses.sum(), labels, count, self.options)

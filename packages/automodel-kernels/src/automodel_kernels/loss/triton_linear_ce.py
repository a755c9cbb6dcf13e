"""Head and cross-entropy together, so that the logits never exist."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from automodel_kernels.backend import is_dtensor
from automodel_kernels.ops.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class TritonLinearCrossEntropy:
    """Cross-entropy from hidden states and the head; masked tokens cost nothing (on CUDA: given ``label_index``)."""

    ignore_index: int = -100
    """Label that does not count."""
    softcap: float | None = None
    """Cap ``c`` of the logits, for callers that pass no ``transform``; the model's own cap comes with ``transform``."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser."""
    label_smoothing: float = 0.0
    """Weight of the uniform target."""
    chunk_rows: int | None = None
    """Tokens whose logits exist at a time; None takes a memory budget."""
    strict: bool = False
    """A fallback to PyTorch is an error."""

    takes_hidden_states = True

    def __call__(
        self,
        hidden_states: Tensor,
        shift_labels: Tensor,
        num_label_tokens: Tensor | float,
        *,
        weight: Tensor,
        bias: Tensor | None = None,
        label_index: Tensor | None = None,
        transform: Any = None,
    ) -> Tensor:
        """Sum of token losses over ``num_label_tokens``.

        Args:
            hidden_states: ``[B, T, H]``, as they enter the head.
            shift_labels: ``[B, T]`` int64, already shifted.
            num_label_tokens: label tokens of the global batch; 0 gives exactly 0 with zero gradient.
            weight: the head's ``[V, H]``; bias: its ``[V]``.
            label_index: flat positions in ``shift_labels`` that hold labels, from the collator.
            transform: what the model does to its logits: ``.scale`` multiplies, ``.softcap`` (0 is none) caps.

        Raises: ValueError: the model and this loss both cap the logits.
        """
        hidden_states, weight, shift_labels = map(_whole, (hidden_states, weight, shift_labels))
        bias = None if bias is None else _whole(bias)
        scale, softcap = _after_head(transform, self.softcap)
        if scale != 1.0:  # on [B, T, H] and [V], not on logits
            hidden_states, bias = hidden_states * scale, None if bias is None else bias * scale
        return linear_cross_entropy(
            hidden_states,
            weight,
            shift_labels,
            bias=bias,
            label_index=label_index,
            reduction="mean",
            num_valid=num_label_tokens,
            ignore_index=self.ignore_index,
            softcap=softcap,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            chunk_rows=self.chunk_rows,
            strict=self.strict,
        )


def _whole(tensor: Tensor) -> Tensor:
    """A DTensor gathered, differentiably: the chunks of the vocabulary product are whole."""
    return cast(Any, tensor).full_tensor() if is_dtensor(tensor) else tensor


def _after_head(transform: Any, softcap: float | None) -> tuple[float, float | None]:
    if transform is None:
        return 1.0, softcap
    if transform.softcap and softcap:
        raise ValueError(
            f"softcap={softcap} while the model caps its logits at {transform.softcap} itself: only one of them may. "
            "Leave the loss's softcap out."
        )
    return float(transform.scale), softcap or transform.softcap or None

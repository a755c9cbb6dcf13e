"""Cross-entropy on logits, one fused pass forward and one backward."""

from dataclasses import dataclass

from torch import Tensor

from automodel_kernels.ops.cross_entropy import cross_entropy


@dataclass(frozen=True)
class TritonCrossEntropy:
    """Cross-entropy on logits through the Triton kernel, or its PyTorch twin where there is no GPU."""

    ignore_index: int = -100
    """Label that does not count."""
    softcap: float | None = None
    """Cap ``c`` of the logits, ``c tanh(x / c)``; None for models that cap none, or cap them in their own forward."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser."""
    label_smoothing: float = 0.0
    """Weight of the uniform target."""
    strict: bool = False
    """A fallback to PyTorch is an error."""

    takes_hidden_states = False

    def __call__(self, logits: Tensor, shift_labels: Tensor, num_label_tokens: Tensor | float) -> Tensor:
        """Sum of token losses over ``num_label_tokens``.

        Args:
            logits: ``[B, T, V]``.
            shift_labels: ``[B, T]`` int64, already shifted.
            num_label_tokens: label tokens of the global batch; 0 gives exactly 0 with zero gradient.
        """
        return cross_entropy(
            logits,
            shift_labels,
            reduction="mean",
            num_valid=num_label_tokens,
            ignore_index=self.ignore_index,
            softcap=self.softcap,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            strict=self.strict,
        )

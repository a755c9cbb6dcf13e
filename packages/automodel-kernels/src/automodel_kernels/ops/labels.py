"""Checks of labels, shapes and options shared by the cross-entropy ops: all raise before any kernel runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTIONS = ("mean", "none", "sum")


@dataclass(frozen=True)
class LossOptions:
    """The loss of one token: ``lse - (1 - s) x_y - s mean(x) + z lse^2`` of (soft-capped) logits."""

    ignore_index: int = -100
    softcap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap={self.softcap}: it must be positive. Leave it None for no cap.")
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss}: it must be 0 or more. Use 0 to leave it out.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={self.label_smoothing}: it must be in [0, 1). Use 0 to leave it out.")

    @property
    def plain(self) -> bool:
        """Whether this is the ordinary cross-entropy."""
        return self.softcap is None and not self.z_loss and not self.label_smoothing


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless the reduction is known."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: it must be one of {', '.join(REDUCTIONS)}.")


def check_labels(labels: Tensor, num_classes: int, ignore_index: int, *, expected_shape: torch.Size) -> None:
    """Raise unless labels are int64, of the expected shape, and each is ignored or in ``[0, num_classes)``.

    On CUDA the range is checked by an asynchronous device assertion, which costs no host sync.
    """
    if labels.shape != expected_shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, the tokens have shape {tuple(expected_shape)}: they must be "
            "equal. Pass one (already shifted) label per token."
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels have dtype {labels.dtype}: it must be torch.int64. Call labels.long().")
    if labels.numel() == 0 or labels.device.type == "meta" or torch.compiler.is_compiling():
        return
    in_range = ((labels >= 0) & (labels < num_classes)) | (labels == ignore_index)
    if labels.device.type == "cpu":
        if not bool(in_range.all()):
            raise ValueError(
                f"label {int(labels[~in_range][0])} is out of range: labels must be in [0, {num_classes}) or "
                f"{ignore_index} (ignored). Check that tokenizer and model have the same vocabulary."
            )
    else:
        torch._assert_async(in_range.all(), f"a label is outside [0, {num_classes}) and is not {ignore_index}")

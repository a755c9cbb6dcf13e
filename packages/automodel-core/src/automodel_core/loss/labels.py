"""Labels: shifting them, counting them, and indexing the ones that count."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
"""Label of a position that is not supervised, as everywhere in PyTorch and transformers."""


def shift_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Turn next-token ``labels`` into ``shift_labels``, aligned with the logits.

    Args:
        batch: ``labels`` ``[B, T]`` in Hugging Face alignment; other keys pass through.

    Returns: a new dict without ``labels``; ``shift_labels[:, t] = labels[:, t + 1]``, last column -100.
    Raises: ValueError: no ``labels``, or not two-dimensional.
    """
    labels = batch.get("labels")
    if labels is None or labels.dim() != 2:
        given = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise ValueError(f"shift_labels got {given}: a batch needs 'labels' [B, T]. Add them in the collator.")
    shifted = {key: value for key, value in batch.items() if key != "labels"}
    shifted["shift_labels"] = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return shifted


def count_label_tokens(batches: Iterable[Mapping[str, Any]]) -> torch.Tensor:
    """Supervised tokens in batches that ``shift_labels`` returned.

    Returns: int64 scalar on the batches' device, without a host sync.
    Raises: ValueError: there is no batch, or one was not shifted.
    """
    total: torch.Tensor | None = None
    for batch in batches:
        if "shift_labels" not in batch:
            raise ValueError(
                f"count_label_tokens got a batch with keys {sorted(batch)}: it needs 'shift_labels'. "
                "Call shift_labels(batch) first."
            )
        count = (batch["shift_labels"] != IGNORE_INDEX).sum()
        total = count if total is None else total + count
    if total is None:
        raise ValueError("count_label_tokens got no batch: a global batch has at least one. Check the data loader.")
    return total


def label_index(shift_labels: torch.Tensor, *, multiple: int = 1) -> torch.Tensor:
    """Flat positions of the supervised tokens, padded to a multiple with a position that is ignored.

    A collator computes this on the CPU, so that a loss on the GPU drops unsupervised positions without a sync.

    Args:
        shift_labels: ``[B, T]`` int64, already shifted.
        multiple: pad the index to a multiple of this; padding repeats an ignored position.

    Returns: int64 ``[N]``. Unpadded where every position is supervised, since there is nothing to pad with.
    """
    flat = shift_labels.reshape(-1)
    index = torch.nonzero(flat != IGNORE_INDEX).flatten()
    missing = -index.numel() % multiple
    if missing and index.numel() < flat.numel():
        ignored = torch.nonzero(flat == IGNORE_INDEX)[0]
        index = torch.cat([index, ignored.expand(missing)])
    return index


def check_labels(labels: torch.Tensor, vocab_size: int, ignore_index: int = IGNORE_INDEX) -> None:
    """Refuse labels outside the vocabulary, on the CPU; on other devices the check would cost a sync.

    Raises: ValueError: a label is neither ``ignore_index`` nor in ``[0, vocab_size)``; it names the label.
    """
    if labels.device.type != "cpu":
        return
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))]
    if wrong.numel():
        raise ValueError(
            f"label {int(wrong[0])} for a vocabulary of {vocab_size}: labels are 0 to {vocab_size - 1}, or "
            f"{ignore_index} to ignore a position. Check that the tokenizer belongs to the model, or resize its "
            "embeddings."
        )

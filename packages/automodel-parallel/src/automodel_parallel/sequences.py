"""Give the sequences of a batch another length, and everything that speaks of their tokens with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FILL = {
    "input_ids": 0,
    "labels": -100,
    "shift_labels": -100,
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "seq_idx": -1,
}
"""Keys with one entry a token in their last dim, and what fills them up."""


def pad_sequences(batch: dict[str, Any], *, multiple: int) -> dict[str, Any]:
    """Fill sequences up on the right to a length that ``multiple`` divides; what is added carries no label.

    Added tokens of a packed row are a document of their own, so that cumulative lengths go on fitting the row.
    """
    length = batch["input_ids"].shape[1]
    padding = -length % multiple
    if not padding:
        return batch
    padded = {
        key: F.pad(value, (0, padding), value=FILL[key]) if key in FILL and value.shape[-1] == length else value
        for key, value in batch.items()
    }
    if "position_ids" in batch and "attention_mask" not in batch:
        padded["position_ids"][..., length:] = torch.arange(padding, device=batch["input_ids"].device)
    for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if key in batch:
            padded[key] = _with_padding_documents(batch[key], batch["input_ids"].shape[0], length, padding)
    for key in ("max_length_q", "max_length_k"):
        if key in batch:
            padded[key] = max(batch[key], padding)
    if "label_index" in batch:
        padded["label_index"] = rebuilt_label_index(padded["shift_labels"], batch["label_index"].numel())
    return padded


def _with_padding_documents(cumulative: Tensor, rows: int, length: int, padding: int) -> Tensor:
    """Cumulative lengths over the flattened batch, when each row has got one more document of ``padding`` tokens."""
    moved = cumulative + cumulative // length * padding
    row = torch.arange(rows, dtype=cumulative.dtype, device=cumulative.device)
    return torch.cat([moved, (row + 1) * length + row * padding]).sort().values


def rebuilt_label_index(shift_labels: Tensor, size: int) -> Tensor:
    """Flat positions of the part's labels, padded with an ignored position, of a size known without device sync."""
    labeled = (shift_labels != -100).flatten()
    size = min(size, labeled.numel())
    # Labelled positions first, in order; the filling that follows is ignored ones by construction.
    return torch.argsort(labeled.logical_not().to(torch.uint8), stable=True)[:size]

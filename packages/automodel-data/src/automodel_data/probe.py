"""A start-up probe: do packed documents leak into one another in this model, with this attention?

Transformers isolates packed documents only where there is no ``attention_mask`` and no key-value cache; some attention
backends and some models (linear attention, state spaces) do not isolate them at all. Nothing fails then, the loss is
merely wrong, so ask first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from automodel_data.collate.packed import packed_collater
from automodel_data.errors import DataError

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
_LOW_PRECISION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class LeakReport:
    """What changing one document did to the logits of the documents packed beside it."""

    max_leak: float
    """Largest absolute change of another document's logits."""
    own_change: float
    """Largest change of the changed document's own logits: 0 would mean that the probe saw nothing."""
    tolerance: float

    @property
    def isolated(self) -> bool:
        return self.max_leak <= self.tolerance < self.own_change


def measure_leak(
    model: torch.nn.Module,
    *,
    vocab_size: int,
    document_length: int = 32,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> LeakReport:
    """Run two packs that differ in their first document only, and compare the logits of the others.

    Args:
        model: a Hugging Face causal language model, or one called the same way; its mode is kept.
        vocab_size: token ids are drawn below it.
        document_length: tokens of each of the three documents; compiled attention on the CPU wants a multiple of 32.
        forward_kwargs: how training calls the model beside the batch; ``use_cache=False`` where left out.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (3 * document_length,), generator=generator)
    changed = ids.clone()
    changed[:document_length] = (ids[:document_length] + 1) % vocab_size
    kwargs = {"use_cache": False, **(forward_kwargs or {})}
    with _evaluation(model), torch.no_grad():
        logits = [_logits(model, tokens, document_length, kwargs) for tokens in (ids, changed)]
    difference = (logits[0] - logits[1]).abs().float()
    return LeakReport(
        max_leak=difference[0, document_length:].max().item(),
        own_change=difference[0, :document_length].max().item(),
        tolerance=_TOLERANCE.get(logits[0].dtype, _LOW_PRECISION_TOLERANCE),
    )


def refuse_leaking_packs(model: torch.nn.Module, *, vocab_size: int, **options: Any) -> LeakReport:
    """`measure_leak`, as a gate before training on packed rows.

    Raises: DataError: documents are not isolated.
    """
    report = measure_leak(model, vocab_size=vocab_size, **options)
    if not report.isolated:
        attention = getattr(getattr(model, "config", None), "_attn_implementation", "its attention")
        raise DataError(
            f"packed documents are not isolated in {type(model).__name__} with {attention!r}: changing one document "
            f"moved the "
            f"logits of its neighbours by {report.max_leak:.2g} (allowed: {report.tolerance:g}). Call the model with "
            f"use_cache=False "
            "and without attention_mask, choose another attn_implementation, or train without packing."
        )
    return report


def _logits(model: torch.nn.Module, ids: torch.Tensor, length: int, kwargs: Mapping[str, Any]) -> torch.Tensor:
    tokens = ids.tolist()
    row = {
        "input_ids": tokens,
        "labels": tokens,
        "position_ids": [*range(length)] * (len(tokens) // length),
        "seq_lens": [length] * (len(tokens) // length),
    }
    device = next(model.parameters()).device
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in packed_collater([row]).items()}
    del batch["labels"], batch["label_index"]
    return model(**batch, **kwargs).logits


@contextmanager
def _evaluation(model: torch.nn.Module):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

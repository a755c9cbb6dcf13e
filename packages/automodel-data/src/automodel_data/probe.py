"""A start-up probe: do packed documents leak into one another in this model, with this attention?

Transformers isolates packed documents only where there is no ``attention_mask`` and no key-value cache; some attention
backends and some models (linear attention, state spaces) do not isolate them at all. Nothing fails then, the loss is
merely wrong, so ask first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]] = packed_collater,
    forbidden_ids: Collection[int] = (),
) -> LeakReport:
    """Run two packs that differ in their first document only, and compare the logits of the others.

    Args:
        model: a Hugging Face causal language model, or one called the same way; its mode is kept.
        vocab_size: token ids are drawn below it.
        document_length: tokens of each of the three documents; compiled attention on the CPU wants a multiple of 32.
        forward_kwargs: how training calls the model beside the batch; ``use_cache=False`` where left out.
        collate_fn: how training makes a batch of packed rows.
        forbidden_ids: ids that are not drawn, such as those that stand for media.
    """
    generator = torch.Generator().manual_seed(0)
    allowed = torch.tensor([i for i in range(vocab_size) if i not in set(forbidden_ids)])
    drawn = torch.randint(0, len(allowed), (3 * document_length,), generator=generator)
    changed = drawn.clone()
    changed[:document_length] = (drawn[:document_length] + 1) % len(allowed)
    kwargs = {"use_cache": False, **(forward_kwargs or {})}
    with _evaluation(model), torch.no_grad():
        batches = [_batch(allowed[which], document_length, collate_fn) for which in (drawn, changed)]
        logits = [_logits(model, batch, kwargs) for batch in batches]
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


def _batch(ids: torch.Tensor, length: int, collate_fn: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    tokens = ids.tolist()
    row = {
        "input_ids": tokens,
        "labels": tokens,
        "position_ids": [*range(length)] * (len(tokens) // length),
        "seq_lens": [length] * (len(tokens) // length),
    }
    return {key: value for key, value in collate_fn([row]).items() if key not in ("labels", "label_index")}


def _logits(model: torch.nn.Module, batch: Mapping[str, Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    device = next(model.parameters()).device
    on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return model(**{**on_device, **kwargs}).logits


@contextmanager
def _evaluation(model: torch.nn.Module):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

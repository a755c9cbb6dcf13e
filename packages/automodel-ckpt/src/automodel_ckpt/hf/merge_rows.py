"""Rows of added tokens in a merge: written into embedding and head, which grow, and told to ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.errors import StateMismatch
from automodel_ckpt.hf.vocabulary import token_indices

_ROWS = ".token_adapter.trainable_tokens_delta"
Rows = dict[str, tuple[list[int], Tensor]]


def take_rows(replacements: dict[str, Tensor], config: Mapping[str, Any]) -> Rows:
    """Take trained token rows out of what replaces weights: weight name -> indices and values."""
    rows: Rows = {}
    for name in [name for name in replacements if name.endswith(_ROWS)]:
        module = name.removesuffix(_ROWS)
        chosen = [c for key, c in token_indices(config).items() if not key or f".{module}".endswith(f".{key}")]
        rows[f"{module}.weight"] = chosen[0], replacements.pop(name)
    return rows


def with_rows(weight: Tensor, indices: list[int], values: Tensor) -> Tensor:
    """The weight with these rows, grown where they lie behind its last one.

    Raises: StateMismatch: rows between the last one and the new ones would be left without values.
    """
    before, after = weight.shape[0], max(weight.shape[0], max(indices) + 1)
    gap = set(range(before, after)) - set(indices)
    if gap:
        raise StateMismatch(
            f"the adapter has rows up to {after - 1} for a weight of {before}, and none for {sorted(gap)[:3]}: nothing "
            "is written. Give the base model that the adapter was trained on.",
            differences=(),
        )
    grown = torch.cat([weight, weight.new_zeros(after - before, *weight.shape[1:])])
    grown[indices] = values.to(weight.dtype)
    return grown


def write_vocabulary(directory: Path, old_rows: int, rows: int, *, added_bytes: int) -> None:
    """Say in ``config.json``, and in the index if there is one, what grew."""
    path = directory / "config.json"
    if path.is_file():
        config = json.loads(path.read_text())
        for part in (config, config.get("text_config") or {}):
            if part.get("vocab_size") == old_rows:
                part["vocab_size"] = rows
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        metadata = content.setdefault("metadata", {})
        metadata["total_size"] = int(metadata.get("total_size", 0)) + added_bytes
        metadata.pop("total_parameters", None)
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

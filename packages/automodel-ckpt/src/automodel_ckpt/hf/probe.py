"""A short batch and what the model in memory answers, kept beside exported weights to check them by later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.errors import CorruptCheckpoint
from automodel_ckpt.local_disk import LocalDisk

PROBE = "automodel_probe.json"
_MAX_COLUMNS = 256
_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Probe:
    """Inputs of one forward pass and some columns of its logits."""

    inputs: dict[str, Tensor]
    """Integer tensors, such as ``input_ids`` ``[1, T]``."""
    columns: Tensor
    """int64 ``[C]``: which entries of the vocabulary."""
    logits: Tensor
    """float32 ``[1, T, C]``."""
    tolerance: float
    """Largest absolute difference that is accepted."""


def probe_text(inputs: Mapping[str, Tensor], logits: Tensor, *, tolerance: float) -> str:
    """The content of the file: `_MAX_COLUMNS` evenly spaced columns of ``logits`` ``[1, T, V]`` are kept."""
    count = min(_MAX_COLUMNS, logits.shape[-1])
    columns = torch.linspace(0, logits.shape[-1] - 1, count, dtype=torch.float64).round().long()
    body = {
        "about": "A short batch and the logits of the trained model for it; automodel-ckpt verify compares them.",
        "inputs": {name: tensor.tolist() for name, tensor in inputs.items()},
        "columns": columns.tolist(),
        "logits": logits.detach().float().cpu()[..., columns].tolist(),
        "tolerance": tolerance,
    }
    return json.dumps(body, separators=(",", ":")) + "\n"


def read_probe(directory: str | os.PathLike) -> Probe | None:
    """The probe of an exported directory, or None if it has none.

    Raises: CorruptCheckpoint: it is not one.
    """
    disk = LocalDisk(directory)
    if not disk.exists(PROBE):
        return None
    try:
        body: dict[str, Any] = json.loads(disk.read(PROBE, limit=_MAX_BYTES))
        inputs = {str(name): torch.tensor(values, dtype=torch.int64) for name, values in body["inputs"].items()}
        columns = torch.tensor(body["columns"], dtype=torch.int64)
        logits = torch.tensor(body["logits"], dtype=torch.float32)
        if logits.ndim != 3 or logits.shape[-1] != len(columns):
            raise ValueError(f"logits of shape {list(logits.shape)} for {len(columns)} columns")
        return Probe(inputs, columns, logits, float(body["tolerance"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(
            f"{disk.path(PROBE)} is damaged: {error}. Export the model again.", file=PROBE
        ) from error

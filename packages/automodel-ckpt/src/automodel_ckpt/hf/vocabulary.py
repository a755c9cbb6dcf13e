"""Adapters that were trained with added tokens: how many rows their base model needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automodel_ckpt.adapter import CONFIG, PEFT_PREFIX, WEIGHTS
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.safetensors_file import read_header


def grow_for_adapter(base: Any, directory: str | os.PathLike) -> int:
    """Give a plain base model as many rows as an adapter was trained with, before PEFT wraps it.

    The adapter holds the values of the new rows; PEFT knows them but makes no room for them. A base that has the rows
    already is left as it is, and so is one whose adapter is not a local directory.

    Args:
        base: of transformers.
        directory: of the adapter.

    Returns: the rows of the base's embedding.
    """
    rows = int(base.get_input_embeddings().weight.shape[0])
    needed = rows_needed(base, directory)
    if needed > rows:
        base.resize_token_embeddings(needed, mean_resizing=False)
    return max(rows, needed)


def rows_needed(base: Any, directory: str | os.PathLike) -> int:
    """The largest row that an adapter writes to, plus one; 0 where it writes to none."""
    if not Path(directory, CONFIG).is_file():
        return 0
    disk = LocalDisk(directory)
    config = json.loads(disk.path(CONFIG).read_text())
    shapes = {}
    if disk.path(WEIGHTS).is_file():
        with disk.open_read(WEIGHTS) as fd:
            shapes = {name: entry.shape for name, entry in read_header(fd, where=disk.path(WEIGHTS))[0].items()}
    ends = [max(chosen) + 1 for chosen in token_indices(config).values() if chosen]
    return max([*ends, *_whole_rows(base, shapes)], default=0)


def token_indices(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """``trainable_token_indices`` by module name; a plain list stands under the empty name, which fits any."""
    given = config.get("trainable_token_indices") or {}
    return {"": list(given)} if not isinstance(given, Mapping) else {name: list(rows) for name, rows in given.items()}


def _whole_rows(base: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[int]:
    """Rows of an embedding or head that was trained in full (``modules_to_save``)."""
    holders = (base.get_input_embeddings(), base.get_output_embeddings())
    for name, module in base.named_modules():
        if any(module is holder for holder in holders) and f"{PEFT_PREFIX}{name}.weight" in shapes:
            yield shapes[f"{PEFT_PREFIX}{name}.weight"][0]

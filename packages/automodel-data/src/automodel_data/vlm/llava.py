"""Local conversations with images: LLaVA's ``<image>`` tags, or OpenAI content parts."""

from __future__ import annotations

from typing import Any, Unpack

from automodel_data.vlm.conversations import Conversations, finish, open_rows
from automodel_data.vlm.rows import RowKeys, VLMDataset


def make_llava_dataset(
    path_or_dataset: Any,
    *,
    split: str = "train",
    name: str | None = None,
    processor: Any = None,
    limit_dataset_samples: int | None = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Conversations about local images; rows without images are welcome among them.

    Args:
        path_or_dataset: a JSONL file, hub id or loaded rows, each with ``conversations`` and ``image``/``images``, or
            with ``messages`` of content parts. Paths are relative to ``media_root``, by default the file's directory.
        split, name: split and configuration of a hub dataset.
        processor: with one, rows are encoded (`VLMDataset`); without, they are plain conversations.
        limit_dataset_samples: use only the first rows.
        keys: settings of `VLMDataset`.
    """
    source = open_rows(path_or_dataset, split=split, name=name)
    return finish(Conversations(source, dict, limit=limit_dataset_samples), processor, path_or_dataset, keys)

"""Image-description pairs (rows with ``image`` and ``text``)."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from automodel_data.vlm.conversations import Conversations, columns, finish, open_rows, question_and_answer
from automodel_data.vlm.rows import RowKeys, VLMDataset


def make_rdr_dataset(
    path_or_dataset: Any = "quintend/rdr-items",
    *,
    split: str = "train",
    prompt: str = "Describe accurately the main object in this image.",
    processor: Any = None,
    limit_dataset_samples: int | None = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Rows ``{"image", "text"}``: the text is the answer to ``prompt``. See `make_llava_dataset` for the rest."""
    source = open_rows(path_or_dataset, split=split)
    rows = Conversations(source, partial(_convert, prompt=prompt), limit=limit_dataset_samples)
    return finish(rows, processor, path_or_dataset, keys)


def _convert(row: Any, *, prompt: str) -> dict[str, Any]:
    image, text = columns(row, "image", "text")
    return question_and_answer(prompt, text, {"type": "image", "image": image})

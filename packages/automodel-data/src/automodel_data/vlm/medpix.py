"""Medical images with a question and an answer each (MedPix)."""

from __future__ import annotations

from typing import Any, Unpack

from automodel_data.vlm.conversations import Conversations, columns, finish, open_rows, question_and_answer
from automodel_data.vlm.rows import RowKeys, VLMDataset


def make_medpix_dataset(
    path_or_dataset: Any = "mmoukouba/MedPix-VQA",
    *,
    split: str = "train",
    processor: Any = None,
    limit_dataset_samples: int | None = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Rows ``{"image_id", "question", "answer"}``, the image in ``image_id``. See `make_llava_dataset` for the rest."""
    source = open_rows(path_or_dataset, split=split)
    return finish(Conversations(source, _convert, limit=limit_dataset_samples), processor, path_or_dataset, keys)


def _convert(row: Any) -> dict[str, Any]:
    image, question, answer = columns(row, "image_id", "question", "answer")
    return question_and_answer(question, answer, {"type": "image", "image": image})

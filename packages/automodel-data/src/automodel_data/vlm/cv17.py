"""Speech with its transcription (Common Voice 17)."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from automodel_data.vlm.conversations import Conversations, columns, finish, open_rows, question_and_answer
from automodel_data.vlm.rows import RowKeys, VLMDataset


def make_cv17_dataset(
    path_or_dataset: Any = "ysdede/commonvoice_17_tr_fixed",
    *,
    split: str = "train",
    prompt: str = "Transcribe the audio clip.",
    processor: Any = None,
    limit_dataset_samples: int | None = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Rows ``{"audio", "transcription"}``. See `make_llava_dataset` for the rest."""
    source = open_rows(path_or_dataset, split=split)
    rows = Conversations(source, partial(_convert, prompt=prompt), limit=limit_dataset_samples)
    return finish(rows, processor, path_or_dataset, keys)


def _convert(row: Any, *, prompt: str) -> dict[str, Any]:
    audio, transcription = columns(row, "audio", "transcription")
    return question_and_answer(prompt, transcription, {"type": "audio", "audio": audio})

"""Receipts as images, with their contents as a sequence of tags (CORD v2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

from automodel_data.errors import BadRow
from automodel_data.vlm.conversations import Conversations, columns, finish, open_rows, question_and_answer
from automodel_data.vlm.rows import RowKeys, VLMDataset


def make_cord_v2_dataset(
    path_or_dataset: Any = "naver-clova-ix/cord-v2",
    *,
    split: str = "train",
    prompt: str = "Describe this image.",
    sort_json_key: bool = True,
    processor: Any = None,
    limit_dataset_samples: int | None = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Rows ``{"image", "ground_truth"}``: the answer is the first parse of the truth, written by `json2token`.

    See `make_llava_dataset` for the rest.
    """
    source = open_rows(path_or_dataset, split=split)
    convert = partial(_convert, prompt=prompt, sort_json_key=sort_json_key)
    return finish(Conversations(source, convert, limit=limit_dataset_samples), processor, path_or_dataset, keys)


def json2token(value: Any, *, sort_json_key: bool = True) -> str:
    """JSON as nested tags: ``{"a": {"b": 1}}`` becomes ``<s_a><s_b>1</s_b></s_a>``; ``<sep/>`` joins list items.

    Args:
        value: objects, lists and scalars; an object of the one key ``text_sequence`` is that text.
        sort_json_key: write keys in reverse alphabetical order, which does not depend on the file's own.
    """
    if isinstance(value, Mapping):
        if set(value) == {"text_sequence"}:
            return str(value["text_sequence"])
        names = sorted(value, reverse=True) if sort_json_key else list(value)
        return "".join(f"<s_{k}>{json2token(value[k], sort_json_key=sort_json_key)}</s_{k}>" for k in names)
    if isinstance(value, list):
        return "<sep/>".join(json2token(item, sort_json_key=sort_json_key) for item in value)
    return str(value)


def _convert(row: Any, *, prompt: str, sort_json_key: bool) -> dict[str, Any]:
    image, truth = columns(row, "image", "ground_truth")
    try:
        truth = json.loads(truth) if isinstance(truth, str) else truth
        parse = truth["gt_parses"][0] if "gt_parses" in truth else truth["gt_parse"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise BadRow("ground_truth holds no parse", path="/ground_truth") from None
    answer = json2token(parse, sort_json_key=sort_json_key)
    return question_and_answer(prompt, answer, {"type": "image", "image": image})

"""Made-up pictures of coloured squares, for tests and benchmarks."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations, finish, question_and_answer
from automodel_data.vlm.rows import RowKeys, VLMDataset

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}


def make_mock_vlm_dataset(
    *,
    num_samples: int = 32,
    image_size: int = 64,
    text_only_every: int = 0,
    seed: int = 0,
    processor: Any = None,
    **keys: Unpack[RowKeys],
) -> Conversations | VLMDataset:
    """Rows that ask for the colour of a square.

    Args:
        num_samples: rows.
        image_size: side of the images in pixels.
        text_only_every: every so many rows one has no image; 0 for none.
        seed: names the data.
        processor, keys: as for `make_llava_dataset`.
    """
    rng = np.random.default_rng(seed)
    rows = [_row(i, rng, image_size, text_only_every) for i in range(num_samples)]
    return finish(Conversations(open_source(rows), dict, limit=None), processor, None, keys)


def _row(index: int, rng: np.random.Generator, side: int, text_only_every: int) -> dict[str, Any]:
    name = list(COLORS)[int(rng.integers(len(COLORS)))]
    corner = rng.integers(0, side // 2, 2)
    if text_only_every and index % text_only_every == 0:
        return question_and_answer(f"Say the word {name}.", name)
    return question_and_answer("Which colour?", name, {"type": "image", "image": _square(COLORS[name], corner, side)})


def _square(color: tuple[int, int, int], corner: np.ndarray, side: int) -> Any:
    from PIL import Image

    image = Image.new("RGB", (side, side), "white")
    image.paste(color, (int(corner[0]), int(corner[1]), int(corner[0]) + side // 2, int(corner[1]) + side // 2))
    return image

"""Gemma 3: a fixed number of tokens per image, and crops where pan-and-scan is on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from automodel_data.collate.families.base import FamilyAdapter, Features, is_token


class Gemma3Adapter(FamilyAdapter):
    """Every image or crop is ``image_seq_length`` tokens that see each other both ways (``token_type_ids``)."""

    can_pack = False  # transformers 5.23 builds its mask of token types over the whole row: losses differ from alone

    def placeholder(self, kind: str) -> str:
        return self.processor.boi_token

    def media_token_id(self, kind: str) -> int:
        return int(self.tokenizer.image_token_id)

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        crops = self._num_crops(*size)
        full = self.processor.full_image_sequence
        if not crops:
            return full
        return f"Here is the original image {full} and here are some crops to help you see better " + " ".join(
            [full] * crops
        )

    def num_features(self, features: Features) -> dict[str, int]:
        return {"image": len(features["pixel_values"]) * int(self.processor.image_seq_length)}

    def token_columns(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, list[int]]:
        return {"token_type_ids": is_token(ids, self.media_token_id("image"))}

    def _num_crops(self, width: int, height: int) -> int:
        """Crops along the longer side, as the image processor cuts them."""
        options: Any = self.processor.image_processor
        if not getattr(options, "do_pan_and_scan", False):
            return 0
        longer, shorter = max(width, height), min(width, height)
        if longer / shorter < options.pan_and_scan_min_ratio_to_activate:
            return 0
        wanted = min(math.floor(longer / options.pan_and_scan_min_crop_size), math.floor(longer / shorter + 0.5))
        crops = min(options.pan_and_scan_max_num_crops, max(2, wanted))
        if min(math.ceil(longer / crops), shorter) < options.pan_and_scan_min_crop_size:
            return 0
        return crops

"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a grid of patches per image, and positions along three axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from automodel_data.collate.families.base import FamilyAdapter, Features, is_token


class QwenVLAdapter(FamilyAdapter):
    """Images of any size: as many tokens as the grid has patches, over ``merge_size`` squared."""

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        width, height = size
        patches = self.processor.image_processor.get_number_of_image_patches(height, width, {})
        return self.processor.image_token * (patches // self._merge**2)

    def num_features(self, features: Features) -> dict[str, int]:
        return {"image": int(features["image_grid_thw"].prod(dim=1).sum()) // self._merge**2}

    def token_columns(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, list[int]]:
        return {"mm_token_type_ids": is_token(ids, self.media_token_id("image"))}

    def image_keys(self) -> tuple[str, ...]:
        return ("pixel_values", "image_grid_thw")

    def image_options(self) -> dict[str, Any]:
        return {}

    @property
    def _merge(self) -> int:
        return int(self.processor.image_processor.merge_size)

    def packed_positions(self, ids: torch.Tensor, positions: torch.Tensor, features: Features) -> torch.Tensor:
        """``[4, B, T]``: text positions first, by which documents are told apart, then time, height and width."""
        grids = iter(features["image_grid_thw"].tolist() if features else [])
        axes = torch.stack([self._row_axes(row, text, grids) for row, text in zip(ids, positions)], dim=1)
        return torch.cat([positions[None], axes])

    def _row_axes(self, ids: torch.Tensor, text: torch.Tensor, grids: Any) -> torch.Tensor:
        """``[3, T]`` positions of one row, from 0 again in every document.

        Text counts up on all axes together; an image spreads over a rectangle and advances by its longer side.
        """
        axes = torch.zeros(3, len(ids), dtype=torch.int64)
        token = self.media_token_id("image")
        at, position = 0, 0
        while at < len(ids):
            if text[at] == 0:
                position = 0
            if ids[at] != token:
                axes[:, at] = position
                at, position = at + 1, position + 1
                continue
            frames, height, width = next(grids)
            height, width = height // self._merge, width // self._merge
            count = frames * height * width
            index = torch.arange(count)
            axes[0, at : at + count] = position + index // (height * width)
            axes[1, at : at + count] = position + index // width % height
            axes[2, at : at + count] = position + index % width
            at, position = at + count, position + max(height, width)
        return axes

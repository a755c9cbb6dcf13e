"""Idefics3 and SmolVLM: an image is cut into rows and columns of tiles, with one global view at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from automodel_data.collate.families.base import FamilyAdapter, Features, cat_padded


class Idefics3Adapter(FamilyAdapter):
    """Every tile is ``image_seq_len`` tokens between marker tokens that name its row and column."""

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        width, height = size
        _, rows, cols = self.processor.image_processor.get_number_of_image_patches(height, width, {})
        fence, tile = self._text("fake_image_token", "<fake_token_around_image>"), self._tile
        view = f"{fence}{self._text('global_image_tag', '<global-img>')}{tile}{fence}"
        if not rows and not cols:
            return view
        lines = ("".join(f"{fence}<row_{r + 1}_col_{c + 1}>{tile}" for c in range(cols)) + "\n" for r in range(rows))
        return "".join(lines) + "\n" + view

    def num_features(self, features: Features) -> dict[str, int]:
        return {"image": len(features["pixel_values"]) * int(self.processor.image_seq_len)}

    def features(self, images: Sequence[Any], sounds: Sequence[Any]) -> Features:
        """One row's tiles; images that were not cut alike leave padding between them, which is taken out here."""
        if not images:
            return {}
        parts = [self._image_features([image]) for image in images]
        return {key: cat_padded([part[key][0] for part in parts]) for key in parts[0]}

    def stack(self, rows: Sequence[Features]) -> Features:
        """``[B, tiles, ...]``: the model finds the tiles of all rows by leaving out those that are all zero."""
        most = max(len(row["pixel_values"]) for row in rows)
        grown = [
            {k: torch.nn.functional.pad(v, [0, 0] * (v.dim() - 1) + [0, most - len(v)])[None] for k, v in row.items()}
            for row in rows
        ]
        return super().stack(grown)

    def image_keys(self) -> tuple[str, ...]:
        return ("pixel_values", "pixel_attention_mask")

    def image_options(self) -> dict[str, Any]:
        return {"return_row_col_info": True}

    @property
    def _tile(self) -> str:
        return self.processor.image_token * int(self.processor.image_seq_len)

    def _text(self, name: str, default: str) -> str:
        return getattr(self.processor, name, None) or default

"""LLaVA, LLaVA-NeXT and LLaVA-OneVision: whole images, or tiles of the best resolution with the padding taken out."""

from __future__ import annotations

import math
from typing import Any

import torch

from automodel_data.collate.families.base import FamilyAdapter, Features, first_of


class LlavaAdapter(FamilyAdapter):
    """Every image is resized to one size: always the same number of tokens."""

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        return self.processor.image_token * self._tokens_per_image

    def num_features(self, features: Features) -> dict[str, int]:
        pixels = features["pixel_values"]
        patches = (pixels.shape[-2] // self._patch) * (pixels.shape[-1] // self._patch)
        return {"image": len(pixels) * (patches + self._extra)}

    @property
    def _patch(self) -> int:
        return int(self.processor.patch_size)

    @property
    def _extra(self) -> int:
        """Tokens beside the patches: class tokens that are kept."""
        added = int(getattr(self.processor, "num_additional_image_tokens", 0) or 0)
        return added - (self.processor.vision_feature_select_strategy == "default")

    @property
    def _tokens_per_image(self) -> int:
        size = getattr(self.processor.image_processor, "crop_size", None) or self.processor.image_processor.size
        height, width = first_of(size, "height", "shortest_edge"), first_of(size, "width", "shortest_edge")
        return (height // self._patch) * (width // self._patch) + self._extra


class LlavaNextAdapter(LlavaAdapter):
    """A base view and tiles; columns or rows of tiles that only hold padding are left out by the model."""

    def image_keys(self) -> tuple[str, ...]:
        return ("pixel_values", "image_sizes")

    def image_options(self) -> dict[str, Any]:
        return {"do_pad": True}

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        return self.processor.image_token * (self._tokens(size[1], size[0]) + self._extra)

    def num_features(self, features: Features) -> dict[str, int]:
        sizes = features["image_sizes"].tolist()
        return {"image": sum(self._tokens(height, width) + self._extra for height, width in sizes)}

    def _side(self) -> int:
        """Patches along a side of a tile."""
        processor = self.processor.image_processor
        size = getattr(processor, "crop_size", None) or processor.size
        return first_of(size, "height", "shortest_edge") // self._patch

    def _pixels(self) -> int:
        return self._side() * self._patch

    def _tokens(self, height: int, width: int) -> int:
        side = self._side()
        tiles_high, tiles_wide = _best_tiles(
            height, width, self.processor.image_processor.image_grid_pinpoints, self._pixels()
        )
        high, wide = unpadded(height, width, side * tiles_high, side * tiles_wide)
        return self._thinned(high, wide, side) + side * side

    def _thinned(self, high: int, wide: int, side: int) -> int:
        return high * wide + high  # one newline token a row


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """As LLaVA-NeXT, with fewer tokens for large images, and the base view alone where a row has several images."""

    def image_keys(self) -> tuple[str, ...]:
        return ("pixel_values", "image_sizes", "batch_num_images")

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        if num_in_row > 1:
            return self.processor.image_token * (self._side() ** 2 + 1 + self._extra)
        return super().expansion(kind, size, num_in_row=num_in_row)

    def features(self, images: Any, sounds: Any) -> Features:
        if not images:
            return {}
        made = self._image_features([list(images)])
        return {**made, "batch_num_images": torch.tensor([len(images)])}

    def num_features(self, features: Features) -> dict[str, int]:
        if len(features["image_sizes"]) > 1:
            return {"image": len(features["image_sizes"]) * (self._side() ** 2 + 1 + self._extra)}
        return super().num_features(features)

    @property
    def _extra(self) -> int:
        return -int(self.processor.vision_feature_select_strategy == "default")

    def _side(self) -> int:
        return math.isqrt(int(self.processor.num_image_tokens))

    def _pixels(self) -> int:
        return first_of(self.processor.image_processor.size, "height", "shortest_edge")

    def _thinned(self, high: int, wide: int, side: int) -> int:
        most = int(self.processor.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(high * wide / (most * side**2))
        if ratio > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
        return high * wide + high


def _best_tiles(height: int, width: int, pinpoints: Any, tile: int) -> tuple[int, int]:
    """Tiles (down, across) of the resolution that keeps most of the image and wastes least."""

    def fitness(point: Any) -> tuple[int, int]:
        high, wide = point
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - high * wide

    best = max(pinpoints, key=fitness)
    return best[0] // tile, best[1] // tile


def unpadded(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """The part of a ``high`` x ``wide`` grid of patches that the image covers when centred in it."""
    if width / height > wide / high:
        inside = int(round(height * (wide / width), 7))
        return high - (high - inside) // 2 * 2, wide
    inside = int(round(width * (high / height), 7))
    return high, wide - (wide - inside) // 2 * 2

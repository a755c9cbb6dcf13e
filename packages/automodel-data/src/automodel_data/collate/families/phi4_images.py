"""Phi-4-multimodal's image processor without torchvision: tiles of an image in high resolution, and one global view."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from automodel_data.errors import BadRow


@dataclass(frozen=True)
class _Layout:
    """How an image lies on its grid of tiles: resized to ``width`` x ``height``, padded at the right and below."""

    columns: int
    rows: int
    width: int
    height: int


class Phi4Images:
    """Makes what ``Phi4MultimodalImageProcessor`` makes, from PIL images and torch alone.

    Args:
        size: side of a tile in pixels.
        patch_size: side of a patch in pixels; two by two patches are one token.
        dynamic_hd: most tiles of one image.
        image_mean, image_std: of pixels in [0, 1], by channel.

    Source: the class of that name in transformers, whose tensors and token counts these are.
    """

    def __init__(
        self,
        *,
        size: Mapping[str, int] | int = 448,
        patch_size: int = 14,
        dynamic_hd: int = 36,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.side = size if isinstance(size, int) else int(size["height"])
        self.patch_size, self.dynamic_hd = patch_size, dynamic_hd
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    @classmethod
    def of(cls, settings: Any) -> Phi4Images:
        """From an image processor of transformers, or the record of one."""
        known = ("size", "patch_size", "dynamic_hd", "image_mean", "image_std")
        if isinstance(settings, cls):
            return settings
        get = settings.get if isinstance(settings, Mapping) else lambda name: getattr(settings, name, None)
        found: dict[str, Any] = {name: get(name) for name in known if get(name) is not None}
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The record that transformers' class reads."""
        return {
            "image_processor_type": "Phi4MultimodalImageProcessor",
            "size": {"height": self.side, "width": self.side},
            "patch_size": self.patch_size,
            "dynamic_hd": self.dynamic_hd,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``preprocessor_config.json``."""
        path = Path(directory) / "preprocessor_config.json"
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def num_tokens(self, width: int, height: int) -> int:
        """Tokens of an image of this size. Raises: BadRow: it is too narrow."""
        return self._count(self._mask(self._layout(width, height)))

    def __call__(self, images: Sequence[Any], **_: Any) -> dict[str, torch.Tensor]:
        """Tensors of some PIL images in RGB.

        Returns: ``image_pixel_values [N, tiles, 3, side, side]`` with the global view first, ``image_sizes [N, 2]`` in
        pixels, ``image_attention_mask [N, tiles, side / patch, side / patch]`` and ``num_img_tokens [N]``. Images of
        fewer tiles are filled up with zero pixels and a mask of ones.
        """
        made = [self._one(image) for image in images]
        most = max(len(pixels) for pixels, _ in made)
        missing = [most - len(pixels) for pixels, _ in made]
        layouts = [self._layout(*image.size) for image in images]
        return {
            "image_pixel_values": torch.stack([pad(p, [0] * 7 + [n]) for (p, _), n in zip(made, missing)]),
            "image_sizes": torch.tensor([[at.rows * self.side, at.columns * self.side] for at in layouts]),
            "image_attention_mask": torch.stack([pad(m, [0] * 5 + [n], value=1.0) for (_, m), n in zip(made, missing)]),
            "num_img_tokens": torch.tensor([self.num_tokens(*image.size) for image in images]),
        }

    def _one(self, image: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels ``[1 + tiles, 3, side, side]`` and mask of one image."""
        layout = self._layout(*image.size)
        raw = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        inside = (layout.height, layout.width)
        resized = interpolate(raw, size=inside, mode="bilinear", antialias=True, align_corners=False).float()
        missing = [0, layout.columns * self.side - layout.width, 0, layout.rows * self.side - layout.height]
        full = pad(resized, missing, value=255.0) / 255
        full = (full - self._per_channel(self.image_mean)) / self._per_channel(self.image_std)
        view = interpolate(full, size=(self.side, self.side), mode="bicubic", align_corners=False)
        mask = self._mask_tiles(self._mask(layout), layout)
        whole = torch.ones(1, self._grid, self._grid)
        return torch.cat([view, self._tiles(full[0], layout)]), torch.cat([whole, mask])

    def _per_channel(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values)[None, :, None, None]

    def _tiles(self, full: torch.Tensor, layout: _Layout) -> torch.Tensor:
        cut = full.reshape(3, layout.rows, self.side, layout.columns, self.side)
        return cut.permute(1, 3, 0, 2, 4).reshape(-1, 3, self.side, self.side)

    def _mask_tiles(self, mask: torch.Tensor, layout: _Layout) -> torch.Tensor:
        cut = mask.reshape(layout.rows, self._grid, layout.columns, self._grid)
        return cut.permute(0, 2, 1, 3).reshape(-1, self._grid, self._grid)

    @property
    def _grid(self) -> int:
        """Patches along a side of a tile."""
        return self.side // self.patch_size

    def _layout(self, width: int, height: int) -> _Layout:
        columns, rows = math.ceil(width / self.side), math.ceil(height / self.side)
        if columns * rows > self.dynamic_hd:
            columns, rows = self._closest(width, height)
        by_width, by_height = columns * self.side / width, rows * self.side / height
        if by_width < by_height:
            inside = (columns * self.side, int(height * by_width))
        else:
            inside = (int(width * by_height), rows * self.side)
        if min(inside) < 10:
            raise BadRow("image is too narrow for Phi-4-multimodal", hint=f"{width}x{height} becomes {inside}.")
        return _Layout(columns, rows, *inside)

    def _closest(self, width: int, height: int) -> tuple[int, int]:
        """Of all grids, the one whose shape is the image's; of equals, a larger one if the image fills half of it."""
        best, least = (1, 1), math.inf
        for columns, rows in self._grids:
            distance = abs(width / height - columns / rows)
            fills_half = width * height > 0.5 * self.side**2 * columns * rows
            if distance < least or (distance == least and fills_half):
                best, least = (columns, rows), distance
        return best

    @cached_property
    def _grids(self) -> list[tuple[int, int]]:
        """(columns, rows) of at most ``dynamic_hd`` tiles, by number of tiles."""
        most = self.dynamic_hd
        pairs = {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
        return sorted(pairs, key=lambda pair: pair[0] * pair[1])

    def _mask(self, layout: _Layout) -> torch.Tensor:
        """1 at patches that the image reaches, ``[rows * grid, columns * grid]``."""
        mask = torch.ones(layout.rows * self._grid, layout.columns * self._grid)
        right = (layout.columns * self.side - layout.width) // self.patch_size
        below = (layout.rows * self.side - layout.height) // self.patch_size
        mask[:, mask.shape[1] - right :] = 0
        mask[mask.shape[0] - below :] = 0
        return mask

    def _count(self, mask: torch.Tensor) -> int:
        """Tokens of all tiles with one at the end of each line, a separator, and the same of the global view."""
        per_tile = mask.reshape(mask.shape[0] // self._grid, self._grid, -1, self._grid)[:, 0::2, :, 0::2]
        seen = per_tile.reshape(per_tile.shape[0] * per_tile.shape[1], -1)
        base = math.ceil(self._grid / 2)
        return int(seen.sum()) + int(seen[:, 0].sum()) + 1 + base * base + base

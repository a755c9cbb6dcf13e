"""What a media file may be, and where it may come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_data.errors import DataError


@dataclass(frozen=True)
class MediaLimits:
    """Caps that hold before a file is decoded. A 10 kB PNG may decode to hundreds of megabytes, so bytes alone say
    little."""

    roots: tuple[str, ...] = ()
    """Directories that local files must lie in, symbolic links resolved. Empty allows none but in-memory media."""
    hosts: tuple[str, ...] = ()
    """Hosts that media may be fetched from, ``name`` or ``name:port``. Empty allows no network at all."""
    max_bytes: int = 64 << 20
    """Largest encoded file."""
    max_pixels: int = 50_000_000
    """Most pixels of one decoded image: 150 MB as RGB."""
    max_side: int = 16_384
    """Longest side in pixels."""
    max_frames: int = 1
    """Frames of an animation; with 1 an animated file is refused. More frames are allowed, the first is used."""
    max_seconds: float = 120.0
    """Longest sound."""
    max_fetch_seconds: float = 30.0
    """Longest download of one file, redirects included."""
    pixel_budget: int | None = None
    """Images above this many pixels are shrunk to it, aspect ratio kept; None leaves them to the processor."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side", "max_frames", "max_seconds", "max_fetch_seconds"):
            if getattr(self, name) <= 0:
                raise DataError(
                    f"media.{name}={getattr(self, name)}: it must be above 0. Leave it out for the default."
                )
        if self.pixel_budget is not None and self.pixel_budget < 1:
            raise DataError(f"media.pixel_budget={self.pixel_budget}: at least 1 pixel is needed. Or leave it out.")

    @classmethod
    def of(cls, value: MediaLimits | Mapping[str, Any] | None, *, root: str | Path | None = None) -> MediaLimits:
        """Limits from a YAML section; ``root``, the data's own directory, is allowed where no roots are named.

        Raises: DataError: an unknown key or a value out of range.
        """
        if isinstance(value, MediaLimits):
            keys = dict(value.__dict__)
        else:
            keys = dict(value or {})
        unknown = set(keys) - set(cls.__dataclass_fields__)
        if unknown:
            raise DataError(f"media has unknown keys {sorted(unknown)}: known are {sorted(cls.__dataclass_fields__)}.")
        for name in ("roots", "hosts"):
            given = keys.get(name) or ()
            keys[name] = (given,) if isinstance(given, str) else tuple(str(part) for part in given)
        if root is not None and not keys["roots"]:
            keys["roots"] = (str(root),)
        return cls(**keys)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size within ``pixel_budget``: a function of the size alone, so lengths are known from headers."""
        if self.pixel_budget is None or width * height <= self.pixel_budget:
            return width, height
        scale = (self.pixel_budget / (width * height)) ** 0.5
        return max(1, int(width * scale)), max(1, int(height * scale))

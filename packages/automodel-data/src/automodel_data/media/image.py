"""Images: size from the header, pixels only after the caps have been checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from automodel_data.errors import BadRow, DataError
from automodel_data.media.limits import MediaLimits
from automodel_data.media.sources import open_media

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 turn the image by 90 degrees


@dataclass(frozen=True)
class ImageInfo:
    """What a header says; ``width`` and ``height`` are those after rotation by EXIF and shrinking to the budget."""

    width: int
    height: int
    format: str


def probe_image(ref: Any, limits: MediaLimits) -> ImageInfo:
    """Read an image's header.

    Args:
        ref: a path, bytes, ``{"bytes", "path"}`` record, ``data:`` URL or PIL image.
        limits: caps.

    Raises: BadRow: not an image of a known format, or above a cap.
    """
    with _opened(ref, limits) as image:
        return _judged(image, limits)


def load_image(ref: Any, limits: MediaLimits) -> Any:
    """Decode an image to PIL RGB of the size that `probe_image` tells: rotated by EXIF, transparency on white.

    Raises: BadRow: as `probe_image`, or pixels that are broken or cut short.
    """
    from PIL import Image, ImageOps

    with _opened(ref, limits) as image:
        info = _judged(image, limits)
        try:
            image.seek(0)
            image.load()
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
            raise BadRow("image data are broken or cut short", hint=str(error)) from None
        rgb = _as_rgb(image)
        size = (info.width, info.height)
        return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)


@contextmanager
def _opened(ref: Any, limits: MediaLimits) -> Iterator[Any]:
    image_module = _pillow()
    if isinstance(ref, image_module.Image):
        yield ref
        return
    with open_media(ref, limits) as stream, warnings.catch_warnings():
        # Pillow's own limit warns or raises depending on a global: ours is checked right after.
        warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
        try:
            image = image_module.open(stream, formats=FORMATS)
        except image_module.DecompressionBombError:
            raise BadRow("image has too many pixels", hint=f"media.max_pixels={limits.max_pixels}.") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise BadRow("not a readable image", hint=f"{error}; formats are {', '.join(FORMATS)}.") from None
        yield image


def _judged(image: Any, limits: MediaLimits) -> ImageInfo:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadRow("image without pixels")
    if max(width, height) > limits.max_side:
        raise BadRow("image side is too long", hint=f"{width}x{height}, media.max_side={limits.max_side}.")
    if width * height > limits.max_pixels:
        raise BadRow("image has too many pixels", hint=f"{width}x{height}, media.max_pixels={limits.max_pixels}.")
    if limits.max_frames == 1 and getattr(image, "is_animated", False):
        raise BadRow("image is animated", hint="Convert it, or set media.max_frames to use the first frame.")
    if getattr(image, "n_frames", 1) > limits.max_frames:
        raise BadRow("image has too many frames", hint=f"media.max_frames={limits.max_frames}.")
    if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    width, height = limits.fit(width, height)
    return ImageInfo(width, height, image.format or "PIL")


def _as_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError("images need Pillow, which is not installed: pip install 'automodel-data[vlm]'") from None
    return Image

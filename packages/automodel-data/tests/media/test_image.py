"""Hostile and broken images are refused from their header, by name, without touching Pillow's settings."""

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from automodel_data.errors import BadRow
from automodel_data.media import MediaLimits, load_image, probe_image


def encoded(image: Image.Image, format: str = "PNG", **keys: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **keys)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that decodes to ``side`` squared pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    line = b"\0" * (1 + side // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


LIMITS = MediaLimits()
SMALL = Image.new("RGB", (20, 10), (200, 30, 30))
JPEG = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
FRAMES = [Image.new("L", (8, 8), 80 * i) for i in range(3)]


@pytest.mark.parametrize(
    ("data", "limits", "why"),
    [
        (bomb(9000), LIMITS, "too many pixels"),
        (bomb(15000), LIMITS, "too many pixels"),
        (encoded(Image.new("1", (20000, 2))), LIMITS, "side is too long"),
        (b"", LIMITS, "empty"),
        (b"not an image at all", LIMITS, "not a readable image"),
        (JPEG[:40], LIMITS, "not a readable image"),
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), LIMITS, "animated"),
        (encoded(SMALL), MediaLimits(max_bytes=20), "too large"),
        ("https://example.org/a.png", LIMITS, "on a network"),
        ("data:image/png;base64,@@@", LIMITS, "broken base64"),
        (12, LIMITS, "given as int"),
    ],
)
def test_refused_from_the_header(data: object, limits: MediaLimits, why: str) -> None:
    with pytest.raises(BadRow, match=why):
        probe_image(data, limits)
    with pytest.raises(BadRow, match=why):
        load_image(data, limits)


def test_a_truncated_jpeg_has_a_header_but_no_pixels() -> None:
    assert probe_image(JPEG[:-200], LIMITS).width == 64
    with pytest.raises(BadRow, match="broken or cut short"):
        load_image(JPEG[: len(JPEG) // 2], LIMITS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    image = load_image(encoded(Image.new(mode, (5, 3)), format), LIMITS)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_transparency_is_white_paper() -> None:
    assert load_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0))), LIMITS).getpixel((0, 0)) == (255, 255, 255)


def test_one_pixel_is_an_image() -> None:
    assert load_image(encoded(Image.new("L", (1, 1))), LIMITS).size == (1, 1)


def test_exif_rotation_turns_pixels_and_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(SMALL, "JPEG", exif=exif)
    info = probe_image(data, LIMITS)
    assert (info.width, info.height) == load_image(data, LIMITS).size == (10, 20)


def test_pixel_budget_shrinks_as_the_header_told() -> None:
    limits = MediaLimits(pixel_budget=50)
    info = probe_image(encoded(SMALL), limits)
    assert info.width * info.height <= 50
    assert load_image(encoded(SMALL), limits).size == (info.width, info.height)


def test_pillow_settings_stay_as_they_were() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with pytest.raises(BadRow):
        load_image(bomb(15000), LIMITS)
    load_image(encoded(SMALL), LIMITS)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_files_are_confined_to_their_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    outside.write_bytes(encoded(SMALL))
    (root / "a.png").write_bytes(encoded(SMALL))
    (root / "link.png").symlink_to(outside)
    limits = MediaLimits(roots=(str(root),))
    assert load_image("a.png", limits).size == load_image(str(root / "a.png"), limits).size == (20, 10)
    for path in ("../secret.png", str(outside), "link.png", f"file://{outside}"):
        with pytest.raises(BadRow, match="outside the allowed"):
            load_image(path, limits)
    with pytest.raises(BadRow, match="without an allowed directory"):
        load_image(str(outside), LIMITS)
    with pytest.raises(BadRow, match="missing"):
        load_image("no.png", limits)
    with pytest.raises(BadRow, match="NUL"):
        load_image("a\0.png", limits)


def test_a_fifo_and_a_directory_are_no_media(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    limits = MediaLimits(roots=(str(tmp_path),))
    for name in ("pipe.png", "."):
        with pytest.raises(BadRow, match="no regular file"):
            load_image(name, limits)

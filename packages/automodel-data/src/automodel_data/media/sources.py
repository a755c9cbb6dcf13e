"""From a reference in a row to a readable stream: bytes in memory, a file below an allowed directory, or a download."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from automodel_data.errors import BadRow
from automodel_data.media.limits import MediaLimits
from automodel_data.media.parts import FilePart


def open_media(ref: Any, limits: MediaLimits) -> BinaryIO:
    """Open a reference without reading it.

    Args:
        ref: a path, a `FilePart`, a ``data:`` URL, an address on an allowed host, bytes, or a Hugging Face
            ``{"bytes", "path"}`` record.
        limits: roots and the largest size.

    Returns: a binary stream that the caller closes.
    Raises: BadRow: a missing file, one outside the roots or on a host that is not allowed, too many bytes, or an
        unknown kind. DataError: an allowed host does not answer.
    """
    if isinstance(ref, Mapping) and ("bytes" in ref or "path" in ref):
        ref = ref["bytes"] if ref.get("bytes") is not None else ref.get("path")
    if isinstance(ref, FilePart):
        _check_size(ref.num_bytes, limits)
        return ref.open()
    if isinstance(ref, (bytes, bytearray, memoryview)):
        return _from_memory(bytes(ref), limits)
    if isinstance(ref, str) and ref.startswith("data:"):
        return _from_memory(_data_url(ref, limits), limits)
    if isinstance(ref, str) and "://" in ref and not ref.startswith("file://"):
        from automodel_data.media.fetch import fetch

        return open(fetch(ref, limits), "rb")
    if isinstance(ref, (str, Path)):
        return _from_file(str(ref).removeprefix("file://"), limits)
    raise BadRow(
        f"media given as {type(ref).__name__}", hint="Give a path, bytes, a PIL image or a {bytes, path} record."
    )


def _from_memory(data: bytes, limits: MediaLimits) -> BinaryIO:
    if not data:
        raise BadRow("media file is empty")
    _check_size(len(data), limits)
    return io.BytesIO(data)


def _data_url(url: str, limits: MediaLimits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadRow("data URL without base64 content")
    _check_size(len(body) * 3 // 4, limits)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise BadRow("data URL with broken base64") from None


def _from_file(path: str, limits: MediaLimits) -> BinaryIO:
    resolved = _confined(path, limits)
    try:
        # Not blocking, so that opening a FIFO returns and can be refused.
        descriptor = os.open(resolved, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise BadRow("media file is missing", hint=f"No such file: {resolved}") from None
    except OSError as error:
        raise BadRow(f"media file cannot be opened: {error.strerror}", hint=str(resolved)) from None
    try:
        _check_file(os.fstat(descriptor), resolved, limits)
    except BadRow:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_file(status: os.stat_result, path: Path, limits: MediaLimits) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BadRow("media path is no regular file", hint=str(path))
    if status.st_size == 0:
        raise BadRow("media file is empty", hint=str(path))
    _check_size(status.st_size, limits)


def _confined(path: str, limits: MediaLimits) -> Path:
    """The real path of a file below one of the roots; relative paths start at the first root."""
    if "\0" in path:
        raise BadRow("media path holds a NUL")
    if not limits.roots:
        raise BadRow("local media without an allowed directory", hint="Name one in the dataset's media_root.")
    roots = [Path(os.path.realpath(os.path.expanduser(root))) for root in limits.roots]
    resolved = Path(os.path.realpath(path if os.path.isabs(path) else roots[0] / path))
    if not any(resolved.is_relative_to(root) for root in roots):
        raise BadRow("media path outside the allowed directories", hint=f"{resolved} is in none of {limits.roots}.")
    return resolved


def _check_size(num_bytes: int, limits: MediaLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise BadRow("media file is too large", hint=f"{num_bytes} bytes, media.max_bytes={limits.max_bytes}.")

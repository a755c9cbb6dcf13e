"""A stretch of a file as a file of its own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from automodel_data.errors import BadRow


@dataclass(frozen=True)
class FilePart:
    """``num_bytes`` bytes from ``offset`` of a larger file, such as a member of an archive."""

    path: Path
    offset: int
    num_bytes: int

    def open(self) -> BinaryIO:
        """A stream of these bytes alone. Raises: BadRow: the file is missing or ends before them."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise BadRow(f"media file cannot be opened: {error.strerror}", hint=str(self.path)) from None
        if file.seek(0, io.SEEK_END) < self.offset + self.num_bytes:
            file.close()
            raise BadRow("archive is cut short", hint=str(self.path))
        return io.BufferedReader(_Window(file, self.offset, self.num_bytes))

    def read(self) -> bytes:
        """All of the bytes."""
        with self.open() as stream:
            return stream.read()


class _Window(io.RawIOBase):
    def __init__(self, file: BinaryIO, offset: int, num_bytes: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a position before the start: {start + offset}")
        self._at = start + offset
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()

"""WebDataset shards: rows out of ``.tar`` files by position, media left where they lie until they are decoded."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_data.errors import BadRow, DataError
from automodel_data.media.parts import FilePart

_IMAGES = ("bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
_SOUNDS = ("flac", "mp3", "ogg", "opus", "wav")
_TEXTS = {"txt": "text", "text": "text", "caption": "text", "cls": "label"}


class TarRows:
    """Random access to the samples of one shard: consecutive members whose names are equal up to the first dot.

    A row has the fields of its ``.json`` member; ``image`` and ``audio``, or ``images`` and ``audios`` where there are
    several; ``text`` from ``.txt``, ``label`` from ``.cls``, and ``__key__``. The headers alone are read to begin with.

    Raises: DataError: no tar archive, or one without samples.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path, self.name = Path(path), name or str(path)
        self._samples: list[tuple[str, list[tuple[str, FilePart]]]] = []
        try:
            self._read_headers()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"{self.name} cannot be read as a tar archive: {error}. Give an uncompressed one."
            ) from None
        if not self._samples:
            raise DataError(f"{self.name} is empty: it holds no file. Give a shard with samples.")

    def _read_headers(self) -> None:
        with tarfile.open(self.path, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue  # directories; links have no bytes of their own
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                part = FilePart(self.path, member.offset_data, member.size)
                if not self._samples or self._samples[-1][0] != key:
                    self._samples.append((key, []))
                self._samples[-1][1].append((extension.lower(), part))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, members = self._samples[index]
        row: dict[str, Any] = {"__key__": key}
        media: dict[str, list[FilePart]] = {"image": [], "audio": []}
        for extension, part in members:
            kind = extension.rpartition(".")[2]
            if kind in _IMAGES:
                media["image"].append(part)
            elif kind in _SOUNDS:
                media["audio"].append(part)
            else:
                row.update(_content(extension, kind, part))
        for kind, parts in media.items():
            if parts:
                row.update({kind: parts[0]} if len(parts) == 1 else {f"{kind}s": parts})
        return row

    def place(self, index: int) -> tuple[str, int]:
        """File and 1-based number of the sample."""
        return self.name, index + 1

    def line(self, index: int) -> int:
        """1-based number of the sample."""
        return index + 1

    def fingerprint(self) -> str:
        from automodel_data.sources import file_digest

        return file_digest(self.path)


def _content(extension: str, kind: str, part: FilePart) -> Mapping[str, Any]:
    data = part.read()
    try:
        if kind == "json":
            fields = json.loads(data)
            return fields if isinstance(fields, dict) else {"json": fields}
        if kind in _TEXTS:
            return {_TEXTS[kind]: data.decode().strip("\n")}
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        raise BadRow(f"the .{kind} member is broken") from None
    return {extension: data}

"""Directories of other tools: which folder holds the model, which step it is, and safetensors files with parts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from automodel_ckpt.adapter import read_tensors
from automodel_ckpt.boxes import Box, tiles, whole
from automodel_ckpt.errors import CheckpointNotFound, CorruptCheckpoint
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.manifest import safe_name
from automodel_ckpt.safetensors_file import read_header

_NEMO_NAME = re.compile(r"epoch_\d+_step_(\d+)")
_SHARDING_INFO = "DCP_SHARDING_INFO"  # where torch's Hugging Face writer says which part of a tensor a file holds


def resolve(source: str | os.PathLike) -> Path:
    """The checkpoint that a path means: links such as ``LATEST`` and ``LOWEST_VAL`` are followed, a run's directory
    stands for its ``LATEST``.

    Raises: CheckpointNotFound: there is nothing. UnsafeFile: a pointer leaves its directory.
    """
    source = Path(source)
    if source.is_file() and source.stat().st_size < 4096:  # where links are not at hand the name is in a file
        source = source.parent / safe_name(source.read_text().strip(), str(source))
    latest = source / "LATEST"
    if latest.exists() and not (source / "model").is_dir():
        return resolve(latest)
    if not source.is_dir():
        raise CheckpointNotFound(f"{source} is no directory. Give a checkpoint, or a run of NeMo Automodel.")
    return source.resolve()


def step_in_name(source: Path) -> int | None:
    """The step of a directory that NeMo Automodel named ``epoch_E_step_S``."""
    match = _NEMO_NAME.fullmatch(source.name)
    return int(match[1]) if match else None


def read_parts(files: list[Path]) -> dict[str, Tensor]:
    """Join tensors whose parts lie in several safetensors files of torch's Hugging Face writer.

    Raises: CheckpointNotFound: the files do not say which part they hold. CorruptCheckpoint: parts do not cover a
        tensor: a file is missing. A tensor's size is that of its outermost part: nothing else records it.
    """
    parts: dict[str, list[tuple[Box, Tensor]]] = {}
    for file in files:
        with LocalDisk(file.parent).open_read(file.name) as fd:
            _, metadata = read_header(fd, where=file)
        offsets = _offsets(metadata, file)
        for name, tensor in read_tensors(file).items():
            if name not in offsets or len(offsets[name]) != tensor.ndim:
                raise CorruptCheckpoint(f"{file}: no offsets of {name!r}.", file=file, tensor=name)
            parts.setdefault(name, []).append((Box(offsets[name], tuple(tensor.shape)), tensor))
    return {name: _join(name, found, files[0].parent) for name, found in parts.items()}


def _offsets(metadata: dict[str, str], file: Path) -> dict[str, tuple[int, ...]]:
    if _SHARDING_INFO not in metadata:
        raise CheckpointNotFound(
            f"{file} holds parts of tensors and does not say which. Consolidate it with the tool that wrote it."
        )
    try:
        info = json.loads(metadata[_SHARDING_INFO])
        return {name: tuple(int(n) for n in entry["saved_offsets"]) for name, entry in info.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{file}: its sharding information is damaged: {error!r}", file=file) from error


def _join(name: str, parts: list[tuple[Box, Tensor]], folder: Path) -> Tensor:
    ndim = len(parts[0][0].shape)
    shape = tuple(max(box.offset[d] + box.shape[d] for box, _ in parts) for d in range(ndim))
    problem = tiles(shape, [box for box, _ in parts])
    if problem:
        raise CorruptCheckpoint(f"{folder}: tensor {name!r}: {problem}: a file is missing or damaged.", tensor=name)
    joined = torch.empty(shape, dtype=parts[0][1].dtype)
    for box, tensor in parts:
        whole(shape).view(joined, box).copy_(tensor)
    return joined

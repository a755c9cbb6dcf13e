"""Read a Hugging Face directory straight into a model, sharded or not: each rank reads the bytes that it keeps."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from automodel_ckpt.boxes import local_part, whole
from automodel_ckpt.directory import LocalDirectory
from automodel_ckpt.errors import StateMismatch, UnsupportedState
from automodel_ckpt.hf.merge import base_files
from automodel_ckpt.hf.names import disk_groups
from automodel_ckpt.manifest import Chunk, FileRecord, TensorRecord
from automodel_ckpt.model_state import model_tensors, unwrap
from automodel_ckpt.reader import Target, read_file, targets_for
from automodel_ckpt.safetensors_file import read_header


@dataclass(frozen=True)
class BaseWeightsReport:
    """What `load_base_weights` did. ``missing`` and ``unexpected`` are names on disk."""

    loaded: int
    bytes_read: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_base_weights(
    model: torch.nn.Module, source: str | os.PathLike, *, strict: bool = True, adapters: tuple[str, ...] = ("lora_",)
) -> BaseWeightsReport:
    """Fill a model's parameters and persistent buffers in place from safetensors files; every rank calls it.

    Weights are converted to the dtype of the parameter that receives them. Nothing is communicated.

    Args:
        model: materialised; plain, DDP, FSDP2 or tensor parallel.
        source: local directory with ``model.safetensors``, or an index and its files.
        strict: the names on disk must be exactly those of the model; False reports differences.
        adapters: parameters with one of these in their name are not expected on disk.

    Raises: StateMismatch: names or shapes differ. UnsupportedState: Transformers fuses weights of this model at load.
        CorruptCheckpoint, UnsafeFile: a file is damaged, or a pickle.
    """
    model = unwrap(model)
    live = model_tensors(model).tensors
    wanted = {name: tensor for name, tensor in live.items() if not any(part in name for part in adapters)}
    disk_names = _disk_names(model, wanted)
    available, sizes = _available(base_files(source))
    missing = sorted(disk for disk in disk_names.values() if disk not in available)
    unexpected = sorted(available.keys() - set(disk_names.values()))
    if strict and (missing or unexpected):
        raise StateMismatch(
            f"{source} does not hold this model: missing {missing[:4]}, unexpected {unexpected[:4]}. "
            "Check the path, or pass strict=False.",
            differences=(*missing, *unexpected),
        )
    targets: dict[Path, list[Target]] = defaultdict(list)
    for name, tensor in wanted.items():
        if disk_names[name] in available:
            path, record = available[disk_names[name]]
            if record.shape != tuple(tensor.shape):
                raise StateMismatch(f"{name}: shape {list(record.shape)} in {path}, {list(tensor.shape)} here.")
            box, local = local_part(tensor)
            for found in targets_for(name, record, box, local).values():
                targets[path] += found
    total = sum(
        read_file(LocalDirectory(path.parent), path.name, sizes[path], found, hashed=False)
        for path, found in targets.items()
    )
    return BaseWeightsReport(len(wanted) - len(missing), total, tuple(missing), tuple(unexpected))


def _disk_names(model: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> dict[str, str]:
    names = {}
    for group in disk_groups(model, wanted):
        if len(group.memory) != 1 or len(group.disk) != 1:
            raise UnsupportedState(
                f"{group.memory[0]!r} is built from {len(group.disk)} tensors on disk; weights that are fused at load "
                "cannot be read in parts. Load the model with from_pretrained() and shard it afterwards."
            )
        names[group.memory[0]] = next(iter(group.disk))
    return names


def _available(files: list[Path]) -> tuple[dict[str, tuple[Path, TensorRecord]], dict[Path, FileRecord]]:
    """Where each tensor on disk lies, from the headers alone."""
    found: dict[str, tuple[Path, TensorRecord]] = {}
    sizes = {}
    for path in files:
        with LocalDirectory(path.parent).open_read(path.name) as fd:
            entries, _ = read_header(fd, where=path)
            sizes[path] = FileRecord(os.fstat(fd).st_size, ())
        for name, entry in entries.items():
            chunk = Chunk(path.name, entry.start, whole(entry.shape))
            found[name] = (path, TensorRecord(entry.dtype, entry.shape, (chunk,)))
    return found, sizes

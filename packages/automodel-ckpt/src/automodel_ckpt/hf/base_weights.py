"""Read a Hugging Face model straight into a model in memory: each rank reads the bytes that it keeps."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.adapter import read_tensors
from automodel_ckpt.boxes import Box, local_part, whole
from automodel_ckpt.directory import LocalDirectory
from automodel_ckpt.errors import CheckpointNotFound, StateMismatch
from automodel_ckpt.hf.merge import base_files
from automodel_ckpt.hf.names import Group, disk_groups, match_names
from automodel_ckpt.hf.pieces import invert, pieces_of
from automodel_ckpt.manifest import Chunk, FileRecord, TensorRecord
from automodel_ckpt.model_state import model_tensors, unwrap
from automodel_ckpt.reader import Target, read_file, targets_for
from automodel_ckpt.safetensors_file import read_header


@dataclass(frozen=True)
class BaseWeightsReport:
    """What `load_base_weights` did. ``missing`` and ``unexpected`` are names on disk, for GGUF names in memory."""

    loaded: int
    """Tensors in memory that were filled."""
    bytes_read: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_base_weights(
    model: torch.nn.Module,
    source: Any,
    *,
    strict: bool = True,
    adapters: tuple[str, ...] = ("lora_",),
    dry_run: bool = False,
) -> BaseWeightsReport:
    """Fill a model's parameters and persistent buffers in place; every rank calls it, and nothing is communicated.

    Names on disk may be any that ``from_pretrained`` knows for the model: those of the hub, of older releases, with or
    without the base model's prefix. Weights are converted to the dtype of the parameter that receives them.

    Args:
        model: materialised; plain, DDP, FSDP2 or tensor parallel.
        source: local directory with ``model.safetensors``, or an index and its files; a ``.gguf`` file; or an object
            with ``path`` and ``gguf_file`` such as ``weight_source`` of a model built with ``materialize=False``.
        strict: the names on disk must be exactly those of the model; False reports differences.
        adapters: parameters with one of these in their name are not expected on disk.
        dry_run: compare names and shapes, read no weight; then the model may be on the meta device.

    Raises: StateMismatch: names or shapes differ. UnsupportedState: Transformers computes weights at load.
        CheckpointNotFound. CorruptCheckpoint, UnsafeFile: a file is damaged, or a pickle.
        ValueError: the model is on the meta device.
    """
    model = unwrap(model)
    live = model_tensors(model).tensors
    wanted = {name: tensor for name, tensor in live.items() if not any(part in name for part in adapters)}
    if not dry_run:
        _refuse_meta(wanted)
    path = _path_of(source)
    report = (
        _load_gguf(model, wanted, path, dry_run)
        if path.suffix == ".gguf"
        else _load_safetensors(model, wanted, path, strict, dry_run)
    )
    if strict and (report.missing or report.unexpected):
        raise StateMismatch(
            f"{path} does not hold this model: missing {list(report.missing[:4])}, "
            f"unexpected {list(report.unexpected[:4])}. Check the path, or pass strict=False.",
            differences=(*report.missing, *report.unexpected),
        )
    return report


def _refuse_meta(wanted: Mapping[str, Tensor]) -> None:
    absent = [name for name, tensor in wanted.items() if tensor.is_meta]
    if absent:
        raise ValueError(
            f"{len(absent)} tensors such as {absent[0]!r} are on the meta device and hold no memory to load into. "
            "Materialise the model first (automodel_core.models.materialize, or to_empty and its buffers)."
        )


def _path_of(source: Any) -> Path:
    """The directory or GGUF file of a source.

    Raises: CheckpointNotFound: it is not on this machine.
    """
    path = Path(getattr(source, "path", None) or source)
    if getattr(source, "gguf_file", None):
        path = path / source.gguf_file
    if not path.exists():
        raise CheckpointNotFound(
            f"{path} does not exist on this machine. Give a local directory; download a model of the hub first, with "
            "huggingface_hub.snapshot_download()."
        )
    return path


def _load_gguf(model: Any, wanted: Mapping[str, Tensor], path: Path, dry_run: bool) -> BaseWeightsReport:
    from automodel_ckpt.hf.gguf_file import gguf_tensors

    loaded: set[str] = set()
    for name, tensor in gguf_tensors(model, path):
        if name in wanted:
            if not dry_run:
                _copy_local(wanted[name], tensor, name, path)
            loaded.add(name)
    missing = tuple(sorted(wanted.keys() - loaded))
    return BaseWeightsReport(len(loaded), 0 if dry_run else path.stat().st_size, missing, ())


@torch.no_grad()
def _copy_local(target: Tensor, full: Tensor, name: str, path: Path) -> None:
    """Copy this rank's part of a whole tensor."""
    _check_shape(name, tuple(full.shape), tuple(target.shape), path)
    box, local = local_part(target)
    local.copy_(whole(full.shape).view(full, box))


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], path: Path) -> None:
    if found != expected:
        raise StateMismatch(f"{name}: shape {list(found)} in {path}, {list(expected)} here.")


def _load_safetensors(
    model: Any, wanted: Mapping[str, Tensor], path: Path, strict: bool, dry_run: bool
) -> BaseWeightsReport:
    files = _Files(base_files(path))
    groups = disk_groups(model, wanted)
    found = match_names(model, groups, files.tensors)
    missing = sorted(name for group in groups for name in group.disk if name not in found)
    unexpected = tuple(sorted(files.tensors.keys() - set(found.values())))
    if strict and (missing or unexpected):
        return BaseWeightsReport(0, 0, tuple(missing), unexpected)
    complete = [group for group in groups if all(name in found for name in group.disk)]
    if dry_run:
        for group in complete:
            _check_shapes(group, found, files)
        return BaseWeightsReport(0, 0, tuple(missing), unexpected)
    whole_groups = [group for group in complete if not _plan(group, wanted, found, files)]
    total = files.read()
    for group in whole_groups:
        total += _load_whole(group, wanted, found, files)
    loaded = sum(len(group.memory) for group in complete)
    return BaseWeightsReport(loaded, total, tuple(missing), unexpected)


@dataclass
class _Files:
    """The safetensors files of a source: where each tensor lies, and what is to be read of them."""

    paths: Iterable[Path]
    tensors: dict[str, tuple[Path, TensorRecord]] = field(default_factory=dict)
    sizes: dict[Path, FileRecord] = field(default_factory=dict)
    targets: dict[Path, list[Target]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        """Read the headers."""
        for path in self.paths:
            with LocalDirectory(path.parent).open_read(path.name) as fd:
                entries, _ = read_header(fd, where=path)
                self.sizes[path] = FileRecord(os.fstat(fd).st_size, ())
            for name, entry in entries.items():
                chunk = Chunk(path.name, entry.start, whole(entry.shape))
                self.tensors[name] = (path, TensorRecord(entry.dtype, entry.shape, (chunk,)))

    def want(self, name: str, box: Box, local: Tensor) -> None:
        """Note that ``box`` of a tensor is to be read into ``local``."""
        path, record = self.tensors[name]
        for found in targets_for(name, record, box, local).values():
            self.targets[path] += found

    def read(self) -> int:
        """Read what was noted; return the number of bytes."""
        return sum(
            read_file(LocalDirectory(path.parent), path.name, self.sizes[path], found, hashed=False, threads=2)
            for path, found in self.targets.items()
        )


def _plan(group: Group, wanted: Mapping[str, Tensor], found: Mapping[str, str], files: _Files) -> bool:
    """Note what this rank reads of a group; False if the group can only be read whole."""
    pieces = pieces_of(group, wanted)
    if pieces is None:
        return False
    for piece in pieces:
        path, record = files.tensors[found[piece.disk]]
        _check_shape(_label(group, piece.disk, piece.memory), record.shape, group.disk[piece.disk], path)
        part = piece.local(wanted[piece.memory])
        if part is not None:
            files.want(found[piece.disk], *part)
    return True


def _check_shapes(group: Group, found: Mapping[str, str], files: _Files) -> None:
    for name, shape in group.disk.items():
        path, record = files.tensors[found[name]]
        _check_shape(_label(group, name, group.memory[0]), record.shape, shape, path)


def _label(group: Group, disk: str, memory: str) -> str:
    return memory if len(group.disk) == 1 else f"{memory} ({disk})"


def _load_whole(group: Group, wanted: Mapping[str, Tensor], found: Mapping[str, str], files: _Files) -> int:
    disk = {}
    for name, shape in group.disk.items():
        path, record = files.tensors[found[name]]
        _check_shape(_label(group, name, group.memory[0]), record.shape, shape, path)
        disk[name] = read_tensors(path, [found[name]])[found[name]]
    for name, tensor in invert(group, disk, wanted).items():
        _copy_local(wanted[name], tensor, name, files.tensors[found[next(iter(group.disk))]][0])
    return sum(tensor.numel() * tensor.element_size() for tensor in disk.values())

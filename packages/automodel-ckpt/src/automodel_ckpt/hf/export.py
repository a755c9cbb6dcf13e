"""Write a model as a Hugging Face directory, gathering a few tensors at a time."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.boxes import Box
from automodel_ckpt.coordination import make_coordinator
from automodel_ckpt.dtypes import dtype_name
from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.hf.assets import copy_assets, write_assets, write_index, write_model_config
from automodel_ckpt.hf.names import Group, disk_groups
from automodel_ckpt.hf.slices import disk_tensors, gather_box, output_dtype, write_slice
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.model_state import model_tensors, unwrap
from automodel_ckpt.progress import counted
from automodel_ckpt.safetensors_file import Entry, make_header
from automodel_ckpt.staged import staged_directory

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: str | int) -> int:
    """``"5GB"`` -> 5_000_000_000 bytes.

    Raises: ValueError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"shard_size={size!r}: give bytes, or a number with KB, MB, GB, KiB, MiB or GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class _Shard:
    """One output file: the groups that go into it, its header, and where each tensor lies."""

    groups: list[Group]
    header: bytes
    entries: dict[str, Entry]

    @property
    def num_bytes(self) -> int:
        return max((entry.end for entry in self.entries.values()), default=len(self.header))


def export_hf(
    model: torch.nn.Module | str | os.PathLike,
    directory: str | os.PathLike,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    dtype: torch.dtype | str | None = None,
    shard_size: str | int = "5GB",
    assets: str | os.PathLike | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
    process_group: Any = None,
    deadline_s: float = 600.0,
) -> Path:
    """Write weights, index, configuration and tokenizer as ``from_pretrained`` reads them; called by every rank.

    Sharded parameters are gathered and written by rank 0 in slices of 2 MiB; only where Transformers stores weights as
    something else than parts and transposes of those in memory, one such group (usually a layer) at a time.

    Args:
        model: a Transformers model (plain, DDP, FSDP2, DTensor), or any module: then only weights are written. Or the
            path of a checkpoint: see `automodel_ckpt.consolidate`, which then does the work in this one process.
        tokenizer, processor: objects with ``save_pretrained``.
        dtype: cast floating-point weights, such as ``torch.bfloat16``; default: each tensor's own.
        shard_size: largest file, such as ``"5GB"``.
        assets: local model directory from which missing small files (tokenizer, templates) are copied.
        extra_files: further names and contents.
        overwrite: replace an existing directory.

    Returns: the directory.
    Raises: UnsupportedState: adapter weights are in the model: merge or save the adapter instead.
        AlreadyExists. StateMismatch: a weight is not finite. SaveFailed: on every rank.
    """
    if isinstance(model, (str, os.PathLike)):
        return _export_checkpoint(model, directory, tokenizer, processor, dtype, shard_size, assets, overwrite)
    model = unwrap(model)
    coordinator = make_coordinator(process_group, deadline_s=deadline_s)
    target_dtype = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    tensors, untie = export_tensors(model)
    shards = plan_shards(disk_groups(model, tensors), tensors, target_dtype, parse_size(shard_size))
    failures: list[Exception] = []

    def finish(staging: Path) -> None:
        if failures:
            raise failures[0]
        write_index_of(staging, shards)
        write_model_config(staging, model, dtype=_config_dtype(model, target_dtype), untie=untie)
        write_assets(staging, tokenizer=tokenizer, processor=processor, extra_files=extra_files)
        if assets is not None:
            copy_assets(assets, staging)

    lead = coordinator.rank == 0
    with contextlib.ExitStack() as stack:
        enter = staged_directory(directory, overwrite=overwrite) if lead else None
        title = f"export to {directory}"
        staging: list[Path] = []
        coordinator.ballot(title, lambda: staging.append(stack.enter_context(enter)) if enter else None, lambda _: None)
        for file, shard in zip(shard_files(len(shards)), shards):
            _write_shard(staging[0] if lead else None, file, shard, tensors, target_dtype, failures)
        coordinator.ballot(title, lambda: finish(staging[0]) if lead else None, lambda _: None)
        # Closing renames on rank 0; no rank returns before the directory has its name.
        coordinator.ballot(title, stack.close, lambda _: None)
    return Path(directory)


def _export_checkpoint(
    path: str | os.PathLike,
    directory: str | os.PathLike,
    tokenizer: Any,
    processor: Any,
    dtype: torch.dtype | str | None,
    shard_size: str | int,
    assets: str | os.PathLike | None,
    overwrite: bool,
) -> Path:
    from automodel_ckpt.hf.consolidate import consolidate

    if tokenizer is not None or processor is not None:
        raise ValueError(
            "a checkpoint is exported with the files of assets=; pass a model to write a tokenizer object."
        )
    wanted = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    return consolidate(path, directory, assets=assets, dtype=wanted, shard_size=shard_size, overwrite=overwrite)


def export_tensors(model: torch.nn.Module) -> tuple[dict[str, Tensor], bool]:
    """The tensors to export by memory name, and whether the configuration must say that embeddings are not tied."""
    found = model_tensors(model)
    adapters = [name for name in found.tensors if ".lora_A." in name or ".lora_B." in name]
    if adapters:
        raise UnsupportedState(
            f"the model holds adapter weights such as {adapters[0]!r}, which a plain model has no place for. "
            "Merge the adapter first, or write it alone with save_adapter()."
        )
    tensors = dict(found.tensors)
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    if isinstance(declared, dict):
        declared = {**declared, **{source: alias for alias, source in declared.items()}}
    for alias, name in found.aliases.items():
        if alias not in declared:  # tied by hand: a reader would not know, so it gets both copies
            tensors[alias] = tensors[name]
    for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ():
        tensors.pop(pattern, None)
    return tensors, _ties_broken(model, tensors)


def _ties_broken(model: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the configuration declares ties between tensors that are separate here."""
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    return any(alias in tensors and source in tensors for alias, source in dict(declared).items())


def plan_shards(
    groups: list[Group], tensors: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> list[_Shard]:
    """Distribute groups over files of at most ``limit`` bytes (a group is never split)."""
    bins: list[list[Group]] = [[]]
    filled = 0
    for group in groups:
        item = output_dtype(tensors[group.memory[0]].dtype, dtype).itemsize
        size = sum(math.prod(shape) * item for shape in group.disk.values())
        if bins[-1] and filled + size > limit:
            bins.append([])
            filled = 0
        bins[-1].append(group)
        filled += size
    return [_plan_shard(part, tensors, dtype) for part in bins]


def _plan_shard(groups: list[Group], tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> _Shard:
    described = [
        (name, dtype_name(output_dtype(tensors[group.memory[0]].dtype, dtype)), shape)
        for group in groups
        for name, shape in group.disk.items()
    ]
    header, entries = make_header(described)
    return _Shard(groups, header, {entry.name: entry for entry in entries})


def shard_files(count: int) -> list[str]:
    """File names as Hugging Face expects them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_shard(
    staging: Path | None,
    file: str,
    shard: _Shard,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    failures: list[Exception],
) -> None:
    """Gather and write one file. After a failure rank 0 still takes part in gathering, so that no rank hangs."""

    def fetch(name: str, box: Box) -> Tensor:
        return gather_box(tensors[name], box)

    with contextlib.ExitStack() as stack:
        write = None
        if staging is not None and not failures:
            with _noted(failures):
                write = stack.enter_context(LocalDisk(staging).create(file, size=shard.num_bytes))
                write(shard.header, 0)
        pieces = (piece for group in shard.groups for piece in disk_tensors(group, tensors, fetch, dtype))
        for name, start, flat in counted(pieces, "save", shard.num_bytes, size=lambda piece: piece[2].nbytes):
            if write is not None and not failures:
                with _noted(failures):
                    write_slice(write, shard.entries[name], start, flat)


@contextlib.contextmanager
def _noted(failures: list[Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised on all ranks by the ballot that follows
        failures.append(error)


def write_index_of(staging: Path, shards: list[_Shard]) -> None:
    """Write the index where there is more than one file."""
    if len(shards) == 1:
        return
    files = shard_files(len(shards))
    entries = [(file, entry) for file, shard in zip(files, shards) for entry in shard.entries.values()]
    write_index(
        staging,
        {entry.name: file for file, entry in entries},
        num_bytes=sum(entry.end - entry.start for _, entry in entries),
        num_parameters=sum(math.prod(entry.shape) for _, entry in entries),
    )


def _config_dtype(model: Any, dtype: torch.dtype | None) -> str | None:
    if dtype is None:
        own = getattr(model, "dtype", None)
        return str(own).removeprefix("torch.") if own is not None else None
    return str(dtype).removeprefix("torch.")

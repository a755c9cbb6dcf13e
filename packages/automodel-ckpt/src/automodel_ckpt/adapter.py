"""PEFT adapter directories: ``adapter_model.safetensors`` and ``adapter_config.json``, published whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.boxes import whole
from automodel_ckpt.coordination import make_coordinator
from automodel_ckpt.dtypes import dtype_of
from automodel_ckpt.errors import CheckpointNotFound, CorruptCheckpoint, StateMismatch
from automodel_ckpt.hf.assets import write_assets
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.safetensors_file import read_header
from automodel_ckpt.staged import staged_directory
from automodel_ckpt.tensor_bytes import writable_bytes
from automodel_ckpt.writer import write_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
"""What PEFT writes before the name of a base model's weight."""
_MAX_CONFIG_BYTES = 1 << 26


def save_adapter(
    directory: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    adapter_config: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    processor: Any = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
    process_group: Any = None,
    deadline_s: float = 600.0,
) -> Path:
    """Write an adapter as PEFT reads it; called by every rank, written by rank 0.

    Args:
        tensors: PEFT's names on disk (``base_model.model.<module>.lora_A.weight``) -> tensors; DTensors are gathered
            one by one.
        adapter_config: the complete content of ``adapter_config.json``.
        tokenizer, processor: objects with ``save_pretrained``, written beside the adapter.
        extra_files: further file names and contents, such as a README.
        overwrite: replace an existing directory.

    Returns: the directory.
    Raises: StateMismatch: no tensor, or one that is not finite. AlreadyExists. SaveFailed: on every rank.
    """
    coordinator = make_coordinator(process_group, deadline_s=deadline_s)
    if not tensors:
        raise StateMismatch("an adapter without tensors: PEFT would load it as the base model. Nothing is written.")
    full = {name: _full(tensor, coordinator.rank) for name, tensor in tensors.items()}

    def write() -> None:
        if coordinator.rank:
            return
        check_finite(full)
        with staged_directory(directory, overwrite=overwrite) as staging:
            write_tensors(LocalDisk(staging), WEIGHTS, {n: t for n, t in full.items() if t is not None})
            (staging / CONFIG).write_text(json.dumps(dict(adapter_config), indent=2, sort_keys=True) + "\n")
            write_assets(staging, tokenizer=tokenizer, processor=processor, extra_files=extra_files)

    coordinator.ballot(f"save of adapter {directory}", write, lambda _: None)
    return Path(directory)


def _full(tensor: Tensor, rank: int) -> Tensor | None:
    """The whole tensor on rank 0's CPU, None elsewhere."""
    from torch.distributed.tensor import DTensor

    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if rank == 0 else None


def check_finite(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise StateMismatch if a tensor holds nan or inf."""
    bad = [name for name, t in tensors.items() if t is not None and t.is_floating_point() and not _finite(t)]
    if bad:
        raise StateMismatch(
            f"{len(bad)} tensors are not finite, such as {bad[0]!r}; nothing is written. The run has diverged: "
            "resume from an earlier checkpoint.",
            differences=tuple(bad),
        )


def _finite(tensor: Tensor) -> bool:
    # The sum of finite values of a narrow dtype may overflow; abs().max() never does.
    return tensor.numel() == 0 or bool(torch.isfinite(tensor.float().abs().max()))


def load_adapter(directory: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an adapter directory: tensors by PEFT's names, and the adapter's config.

    Raises: CheckpointNotFound: no adapter there. CorruptCheckpoint, UnsafeFile: damaged, or a pickle.
    """
    disk = LocalDisk(directory)
    try:
        config = json.loads(disk.read(CONFIG, limit=_MAX_CONFIG_BYTES))
        tensors = read_tensors(disk.path(WEIGHTS))
    except FileNotFoundError as error:
        raise CheckpointNotFound(
            f"{error.filename} does not exist; an adapter directory holds {CONFIG} and {WEIGHTS}. Check the path."
        ) from error
    except ValueError as error:
        raise CorruptCheckpoint(f"{disk.path(CONFIG)} is not JSON: {error}", file=CONFIG) from error
    return tensors, config


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of one safetensors file, copied into memory (a mapped file would change under a writer).

    Args:
        names: which; default all.
    """
    disk = LocalDisk(path.parent)
    found = {}
    with disk.open_read(path.name) as fd:
        entries, _ = read_header(fd, where=path)
        for name in entries if names is None else names:
            entry = entries[name]
            tensor = torch.empty(whole(entry.shape).shape, dtype=dtype_of(entry.dtype))
            read_exactly(fd, writable_bytes(tensor), entry.start, path)
            found[name] = tensor
    return found


def read_exactly(fd: int, memory: memoryview, start: int, where: Path | str) -> None:
    """Fill ``memory`` from a byte offset of a file."""
    done = 0
    while done < len(memory):
        count = os.preadv(fd, [memory[done : done + (1 << 24)]], start + done)
        if count == 0:
            raise CorruptCheckpoint(f"{where} ends at byte {start + done}; it is truncated.", file=where)
        done += count

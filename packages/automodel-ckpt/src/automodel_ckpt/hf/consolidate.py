"""A sharded checkpoint as one Hugging Face directory, in bounded memory whatever the size of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.boxes import Box
from automodel_ckpt.contents import Contents
from automodel_ckpt.dtypes import dtype_of
from automodel_ckpt.errors import StateMismatch, UnsupportedState
from automodel_ckpt.hf.assets import copy_assets
from automodel_ckpt.hf.export import parse_size, plan_shards, shard_files, write_index_of
from automodel_ckpt.hf.names import disk_groups
from automodel_ckpt.hf.slices import disk_tensors, write_slice
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.staged import staged_directory


def consolidate(
    path: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    assets: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    shard_size: str | int = "5GB",
    section: str = "model",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint's model as ``from_pretrained`` reads it, from any number of shards, in one process.

    Tensors pass through in slices of 2 MiB, fused experts too; only where Transformers stores weights as something else
    than parts and transposes of those in memory is one such group (usually a layer) read whole.

    Args:
        path: a checkpoint, or a directory of them: then the newest complete one.
        assets: local model directory: its ``config.json`` says how the weights are named on disk and which are tied,
            and its small files are copied. Without it the stored names are kept and only weights are written.
        dtype: cast floating-point weights.
        shard_size: largest file.
        section: which model of the checkpoint.

    Raises: UnsupportedState: the checkpoint holds the trained part of a model only. CorruptCheckpoint: a block read
        is not what was written. AlreadyExists.
    """
    contents = Contents(path)
    stored = contents.section(section)
    if stored.frozen:
        raise UnsupportedState(
            f"{contents.directory.path(contents.name)} holds {len(stored.tensors)} trained tensors without their base "
            "model. Export the adapter directory, or merge it: automodel-ckpt merge BASE ADAPTER OUT"
        )
    config = _read_config(assets)
    model = _meta_model(config) if config else None
    records = {name: stored.tensors[stored.aliases.get(name, name)] for name in _names(stored, model)}
    _refuse_other_sizes(model, records, assets)
    like = {name: torch.empty(r.shape, dtype=dtype_of(r.dtype), device="meta") for name, r in records.items()}
    shards = plan_shards(disk_groups(model, like), like, dtype, parse_size(shard_size))

    def fetch(name: str, box: Box) -> Tensor:
        return contents.part(section, stored.aliases.get(name, name), box)

    with staged_directory(directory, overwrite=overwrite) as staging:
        for file, shard in zip(shard_files(len(shards)), shards):
            with LocalDisk(staging).create(file, size=shard.num_bytes) as write:
                write(shard.header, 0)
                for group in shard.groups:
                    for name, start, flat in disk_tensors(group, like, fetch, dtype):
                        write_slice(write, shard.entries[name], start, flat)
        write_index_of(staging, shards)
        if config is not None:
            written = {**config, "dtype": str(dtype).removeprefix("torch.")} if dtype else config
            (staging / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        if assets is not None:
            copy_assets(assets, staging)
    return Path(directory)


def _read_config(assets: str | os.PathLike | None) -> dict[str, Any] | None:
    path = Path(assets, "config.json") if assets is not None else None
    return json.loads(path.read_text()) if path is not None and path.is_file() else None


def _meta_model(config: dict[str, Any]) -> Any:
    """The Transformers model of a configuration, without memory; only classes of Transformers itself."""
    import transformers

    names = config.get("architectures") or [None]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        raise UnsupportedState(
            f"config.json names the architecture {names[0]!r}, which Transformers {transformers.__version__} does not "
            "have. Upgrade Transformers, or export without assets and copy the small files."
        )
    with torch.device("meta"):
        return kind(kind.config_class.from_dict(config))


def _refuse_other_sizes(model: Any, records: Mapping[str, Any], assets: Any) -> None:
    """Raises: StateMismatch: the assets describe a model of other sizes, such as one without the added tokens."""
    there = {} if model is None else {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name, record in records.items() if there.get(name, tuple(record.shape)) != tuple(record.shape)]
    if wrong:
        raise StateMismatch(
            f"{wrong[0]} is {list(records[wrong[0]].shape)} in the checkpoint and {list(there[wrong[0]])} by "
            f"{assets}/config.json; nothing is written. Give the assets of this run: where tokens were added to its "
            "tokenizer, RUN/final or RUN/hf/step-N.",
            differences=tuple(wrong),
        )


def _names(stored: Any, model: Any) -> list[str]:
    """Names to write: tied ones once where the configuration ties them, else with a copy each."""
    declared = set()
    for alias, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        declared |= {alias, source}
    return sorted(stored.tensors) + sorted(alias for alias in stored.aliases if alias not in declared)

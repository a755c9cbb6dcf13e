"""Merge a LoRA adapter directory into its base model's directory, file by file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.adapter import PEFT_PREFIX, load_adapter, read_tensors
from automodel_ckpt.errors import CheckpointNotFound, StateMismatch, UnsupportedState
from automodel_ckpt.hf.assets import copy_assets
from automodel_ckpt.hf.merge_rows import Rows, take_rows, with_rows, write_vocabulary
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.safetensors_file import read_header
from automodel_ckpt.staged import staged_directory
from automodel_ckpt.writer import write_tensors


def merge(
    base: str | os.PathLike, adapter: str | os.PathLike, directory: str | os.PathLike, *, overwrite: bool = False
) -> list[str]:
    """Write ``base`` with ``W + scaling * B @ A`` for every adapted weight; return the names that changed.

    The product is computed in float32 and rounded once to the weight's dtype. Memory: one file of the base.

    Args:
        base: Hugging Face directory with safetensors.
        adapter: PEFT directory of plain LoRA (rank-stabilised too); ``modules_to_save`` replace their weights, and rows
            of tokens theirs. Where tokens were added, embedding and head grow, and ``config.json`` says so.

    Raises: StateMismatch: an adapted module is not in the base, or nothing changes. UnsupportedState: DoRA and others.
    """
    tensors, config = load_adapter(adapter)
    _refuse_unsupported(config)
    deltas, replacements = _split(tensors)
    rows = take_rows(replacements, config)
    changed: list[str] = []
    grown: dict[str, tuple[Tensor, Tensor]] = {}
    with staged_directory(directory, overwrite=overwrite) as staging:
        for path in base_files(base):
            weights = read_tensors(path)
            merged = dict(_merged(weights, deltas, replacements, rows, config, changed))
            grown |= {n: (weights[n], t) for n, t in merged.items() if t.shape != weights[n].shape}
            write_tensors(LocalDisk(staging), path.name, merged)
        unused = sorted((deltas.keys() | replacements.keys() | rows.keys()) - set(changed))
        if unused or not changed:
            raise StateMismatch(
                f"{len(unused)} adapted weights are not in {base}, such as {unused[:2]}; nothing is written. "
                "Give the base model that the adapter was trained on.",
                differences=tuple(unused),
            )
        index = Path(base, "model.safetensors.index.json")
        if index.is_file():
            (staging / index.name).write_bytes(index.read_bytes())
        copy_assets(adapter, staging)
        copy_assets(base, staging)
        _write_grown(staging, grown, tensor_names(base) - set(changed))
    return changed


def _write_grown(staging: Path, grown: dict[str, tuple[Tensor, Tensor]], unchanged: set[str]) -> None:
    """Raises: StateMismatch: the embedding grew and the head, a weight of its own, did not."""
    if not grown:
        return
    sizes = {(len(old), len(new)) for old, new in grown.values()}
    if len(sizes) > 1 or "lm_head.weight" in unchanged:
        raise StateMismatch(
            f"{', '.join(sorted(grown))} grow by the adapter's added tokens, and the head does not as much; nothing is "
            "written. Train the head's rows too (trainable_token_indices: {embed_tokens: [...], lm_head: [...]}).",
            differences=tuple(grown),
        )
    [(old_rows, rows)] = sizes
    added = sum((new.numel() - old.numel()) * new.element_size() for old, new in grown.values())
    write_vocabulary(staging, old_rows, rows, added_bytes=added)


def base_files(base: str | os.PathLike) -> list[Path]:
    """The safetensors files of a model directory, and every one that its index names.

    Raises: CheckpointNotFound: none, or one is missing.
    """
    import json

    index = Path(base, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if index.is_file():
        from automodel_ckpt.manifest import safe_name

        names = sorted({safe_name(n, str(index)) for n in json.loads(index.read_text())["weight_map"].values()})
    for name in names:
        if not Path(base, name).is_file():
            raise CheckpointNotFound(f"{Path(base, name)} does not exist; a model directory holds safetensors files.")
    # A hub cache links files into its blob store: follow the links here, as the files are the user's own choice.
    return [Path(base, name).resolve() if Path(base, name).is_symlink() else Path(base, name) for name in names]


def tensor_names(base: str | os.PathLike) -> set[str]:
    """Names of all tensors of a model directory."""
    names: set[str] = set()
    for path in base_files(base):
        with LocalDisk(path.parent).open_read(path.name) as fd:
            names |= read_header(fd, where=path)[0].keys()
    return names


def _refuse_unsupported(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    odd = [key for key in ("use_dora", "fan_in_fan_out", "target_parameters", "megatron_config") if config.get(key)]
    if kind != "LORA" or odd or config.get("bias", "none") != "none":
        what = ", ".join(odd) or f"peft_type {kind}, bias {config.get('bias')}"
        raise UnsupportedState(f"the adapter uses {what}; plain LoRA is merged here. Use peft's merge_and_unload().")


def _split(tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Base weight name -> (A, B), and base weight name -> replacement."""
    short = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    deltas, replacements = {}, {}
    for name, tensor in short.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match is None:
            replacements[name] = tensor
        elif match[2] == "A":
            deltas[f"{match[1]}.weight"] = (tensor, short[f"{match[1]}.lora_B.weight"])
    return deltas, replacements


def _merged(
    weights: dict[str, Tensor],
    deltas: dict[str, tuple[Tensor, Tensor]],
    replacements: dict[str, Tensor],
    rows: Rows,
    config: dict[str, Any],
    changed: list[str],
) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights.items():
        if name in deltas:
            a, b = deltas[name]
            product = b.float() @ a.float() * _scaling(name.removesuffix(".weight"), config)
            changed.append(name)
            yield name, (weight.float() + product).to(weight.dtype)
        elif name in replacements:
            changed.append(name)
            yield name, replacements[name].to(weight.dtype)
        elif name in rows:
            changed.append(name)
            yield name, with_rows(weight, *rows[name])
        else:
            yield name, weight


def _scaling(module: str, config: dict[str, Any]) -> float:
    rank = _by_pattern(module, config.get("rank_pattern"), config["r"])
    alpha = _by_pattern(module, config.get("alpha_pattern"), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(module: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """peft's rule: a pattern is the module's name, or a regular expression for its end."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default


def equal_tensors(one: Tensor, other: Tensor) -> bool:
    """Same shape, dtype and bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))

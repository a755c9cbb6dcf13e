"""The small files beside the weights: configuration, generation settings, tokenizer, processor."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_ckpt.manifest import safe_name

ASSET_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def write_assets(
    directory: Path,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write what objects with ``save_pretrained`` and literal files contribute."""
    for holder in (tokenizer, processor):
        if holder is not None:
            holder.save_pretrained(directory)
    for name, content in (extra_files or {}).items():
        path = directory / safe_name(name, "extra_files")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_model_config(directory: Path, model: Any, *, dtype: str | None, untie: bool) -> None:
    """Write ``config.json`` and ``generation_config.json`` of a Transformers model; other modules have none.

    Args:
        dtype: dtype of the weights, such as ``"bfloat16"``.
        untie: the two embeddings hold different values, so the file must say that they are not tied.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "save_pretrained"):
        return
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    if dtype is not None:
        config.dtype = dtype
    if untie:
        config.tie_word_embeddings = False
    config.save_pretrained(directory)
    generation = getattr(model, "generation_config", None)
    if generation is not None and model.can_generate():
        generation.save_pretrained(directory)


def copy_assets(source: str | os.PathLike, directory: Path) -> list[str]:
    """Copy the asset files of a local model directory; return their names.

    Code (``*.py``) is not copied: a directory of weights must not bring code that nobody chose.
    """
    copied = []
    for name in ASSET_NAMES:
        path = Path(source, name)
        if path.is_file() and not (directory / name).exists():
            shutil.copyfile(path, directory / name)
            copied.append(name)
    templates = Path(source, "additional_chat_templates")
    if templates.is_dir():
        shutil.copytree(templates, directory / templates.name, dirs_exist_ok=True)
        copied.append(templates.name)
    return copied


def write_index(directory: Path, weight_map: Mapping[str, str], *, num_bytes: int, num_parameters: int) -> None:
    """Write ``model.safetensors.index.json``."""
    metadata = {"total_size": num_bytes, "total_parameters": num_parameters}
    body = {"metadata": metadata, "weight_map": dict(weight_map)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")

"""Where base weights go: straight into the shards of each rank, or whole onto every rank, and why."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automodel_core.config import ConfigNode
from automodel_recipes.build.call import build
from automodel_recipes.build.vocabulary import added_key, added_tokens

# Sections and keys that look at weights, or change them, before they are spread over ranks.
_READ_WEIGHTS = ("quantization", "fp8", "qat", "transforms")
_LOADED_OTHERWISE = ("gguf_file", "quantization_config", "use_liger_kernel", "device_map", "subfolder")
_ADAPTERS_OF_WEIGHTS = ("use_dora", "target_parameters", "trainable_token_indices")


def why_whole(config: ConfigNode) -> str | None:
    """What in the configuration needs the whole model on every rank first; None: nothing."""
    model, peft = config.model, config.get("peft")
    if "materialize" in model:
        return None if model.get("materialize") is False else "model.materialize is true"
    if not str(model.get("_target_")).endswith(("ForCausalLM.from_pretrained", "ForImageTextToText.from_pretrained")):
        return f"{model.get('_target_')} makes its own weights"
    reasons = [added_key(config)] if added_tokens(config) else []
    reasons += [f"section {name}" for name in _READ_WEIGHTS if config.get(name)]
    reasons += [f"model.{key}" for key in _LOADED_OTHERWISE if model.get(key)]
    if peft is not None:
        lora = str(peft.get("_target_")).rpartition(".")[2] in ("lora", "PeftConfig")
        reasons += [] if lora else [f"peft method {peft.get('_target_')}"]
        reasons += [f"peft.{key}" for key in _ADAPTERS_OF_WEIGHTS if peft.get(key)]
        reasons += ["peft.lora_A_init: pissa"] if peft.get("lora_A_init") == "pissa" else []
    return f"{reasons[0]} works on whole weights" if reasons else None


def build_on_meta(section: ConfigNode, *, tokenizer: Any) -> tuple[nn.Module | None, str]:
    """The model of a section without memory, ready to be loaded into shards; or None and what is in the way."""
    from automodel_ckpt import CheckpointError
    from automodel_parallel.apply import recompute_buffers

    runtime = {} if "materialize" in section else {"materialize": False}
    model = build(section, runtime, tokenizer=tokenizer)
    try:
        model.base_weights = local_directory(model.weight_source)
        check_base_weights(model, model.base_weights)
        recompute_buffers(model, torch.device("cpu"))
    except (CheckpointError, OSError, ValueError) as error:
        return None, str(error)
    _read_generation_config(model)
    return model, ""


def check_base_weights(model: nn.Module, directory: Path) -> None:
    """Raises: CheckpointError: the files are not those of the model, or cannot be read in parts."""
    from automodel_ckpt.hf.base_weights import load_base_weights

    load_base_weights(model, directory, dry_run=True)


def loader(model: Any, *, whole_model: bool) -> Callable[[nn.Module], str]:
    """What fills the shards of a model that ``build_on_meta`` made; ``whole_model`` unless ranks hold stages of it."""
    directory = model.base_weights

    def load(parallel_model: nn.Module) -> str:
        from automodel_ckpt import StateMismatch
        from automodel_ckpt.hf.base_weights import load_base_weights

        report = load_base_weights(parallel_model, directory, strict=whole_model)
        if report.missing:
            raise StateMismatch(
                f"{directory} lacks {report.missing[:3]}. Check the path.", differences=tuple(report.missing)
            )
        size = report.bytes_read / 2**20
        return f"base weights: {report.loaded} tensors, {size:.1f} MiB, read by each rank straight into its shards"

    return load


def local_directory(source: Any) -> Path:
    """The directory with a model's safetensors files; those of a hub id are fetched, or taken from the cache.

    Raises: OSError, ValueError: there is none.
    """
    if os.path.isdir(source.path):
        return Path(source.path)
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        source.path, revision=source.revision, allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json"]
    )
    return Path(found)


def _read_generation_config(model: Any) -> None:
    from transformers import GenerationConfig

    try:
        model.generation_config = GenerationConfig.from_pretrained(model.base_weights)
    except OSError:
        return  # the model has none: transformers' own stays

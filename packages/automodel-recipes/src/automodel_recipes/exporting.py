"""Turn what a run made into a directory that plain transformers or peft reads."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from automodel_recipes.errors import UnusableInputError
from automodel_recipes.inference import load_for_inference, rebuilt, run_config
from automodel_recipes.places import Place


def export_weights(place: Place, out: Path, *, dtype: str | None = None, shard_size: str | None = None) -> str:
    """Write a run's finished weights, or those of one of its checkpoints: a model directory, or a PEFT adapter.

    Args:
        place: finished weights are copied; a checkpoint is loaded into its run's model and written from there, with
            configuration and tokenizer. ``automodel_ckpt.consolidate`` does without the memory for a whole model.
        out: a directory that does not exist yet.
        dtype: cast a model's floating-point weights, e.g. ``bfloat16``.
        shard_size: largest file of a model, e.g. ``2GB``.

    Returns: ``model`` or ``adapter``.
    Raises: UnusableInputError: ``out`` exists, the place is on the hub, or an adapter was to be cast or split.
    """
    _refuse_existing(out)
    recast = {name: value for name, value in (("dtype", dtype), ("shard_size", shard_size)) if value is not None}
    if place.kind == "hub":
        raise UnusableInputError(
            f"{place.path} is no directory here. Give a run, a checkpoint or a directory of weights."
        )
    config = run_config(place) if place.kind == "checkpoint" else None
    if config is not None and config.get("peft") is None:
        return _export_model(place, config, out, recast)
    if recast and place.kind != "model":
        raise UnusableInputError(
            f"{place.path} holds an adapter, which keeps its dtype and its one file. Leave {' and '.join(recast)} out, "
            "or merge it by `ckpt merge`."
        )
    if config is not None:
        return _adapter_of(place, config, out).kind
    if recast:
        return _rewrite(Path(place.path), out, recast)
    _copy(Path(place.path), out)
    return place.kind


def _rewrite(source: Path, out: Path, recast: dict[str, Any]) -> str:
    """Read a finished model by the class that its configuration names, and write it in another dtype or other files."""
    import transformers

    from automodel_ckpt import export_hf

    names = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    architecture = getattr(transformers, names[0], None)
    if architecture is None:
        raise UnusableInputError(
            f"{source}: transformers has no class {names[0]!r}, which its config.json names, to read the model with. "
            f"Leave {' and '.join(recast)} out to copy it."
        )
    export_hf(architecture.from_pretrained(source, dtype="auto"), out, assets=source, **recast)
    return "model"


def _export_model(place: Place, config: Any, out: Path, recast: dict[str, Any]) -> str:
    from automodel_ckpt import export_hf

    built, keys = _rebuilt(place, config)
    export_hf(built.model, out, **keys, **recast)
    return "model"


def _copy(source: Path, out: Path) -> None:
    """Whole or not at all: the copy gets its name when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        shutil.copytree(source, Path(folder) / "copy").rename(out)


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UnusableInputError(f"{out} exists already. Choose another -o.")


def _rebuilt(place: Place, config: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint's run with its weights, and the tokenizer and processor to write beside it."""
    from automodel_recipes.run import configured_recipe

    recipe = configured_recipe(config)(config)
    recipe.build_tokenizer()
    return rebuilt(place, config, recipe.tokenizer), {"tokenizer": recipe.tokenizer, "processor": recipe.processor}


def _adapter_of(place: Place, config: Any, directory: Path) -> Place:
    """The adapter in a checkpoint, written as PEFT reads it. Raises: UnusableInputError: its run trained no adapter."""
    from automodel_ckpt import save_adapter
    from automodel_core.peft import adapter_config, adapter_state_dict

    if config.get("peft") is None:
        raise UnusableInputError(
            f"{place.path} is of a run without LoRA, so there is nothing to merge. Give a LoRA run."
        )
    built, keys = _rebuilt(place, config)
    save_adapter(directory, adapter_state_dict(built.model), adapter_config(built.model, built.peft), **keys)
    return Place("adapter", str(directory))


def merge_adapter(place: Place, out: Path, *, base_model: str | None = None) -> None:
    """Write the base model with the adapter's weights added in, as a plain Hugging Face directory.

    Raises: UnusableInputError: the place is no adapter, ``out`` exists, or merging changed no weight.
    """
    from automodel_ckpt import export_hf
    from automodel_recipes.vlm.inference import is_multimodal, load_base_vlm, load_vlm

    _refuse_existing(out)
    if place.kind == "checkpoint":
        with tempfile.TemporaryDirectory() as folder:
            merge_adapter(_adapter_of(place, run_config(place), Path(folder) / "adapter"), out, base_model=base_model)
        return
    if place.kind != "adapter":
        raise UnusableInputError(
            f"{place.path} is no adapter, so there is nothing to merge. Give a LoRA run or adapter."
        )
    source = base_model or place.base_model or ""
    keys: dict[str, Any]
    if is_multimodal(place):
        model, processor = load_vlm(place, base_model=base_model)
        keys, base = {"processor": processor, "tokenizer": processor.tokenizer}, load_base_vlm(source).state_dict()
    else:
        from transformers import AutoModelForCausalLM

        model, tokenizer = load_for_inference(place, base_model=base_model)
        keys, base = {"tokenizer": tokenizer}, AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict()
    merged = model.merge_and_unload()
    state = merged.state_dict()
    if all(torch.equal(state[name].cpu(), tensor) for name, tensor in base.items()):
        raise UnusableInputError(f"merging {place.path} changed no weight of {place.base_model}: the adapter is empty.")
    export_hf(merged, out, **keys)

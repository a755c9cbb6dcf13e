"""Load what a run made, through plain transformers and peft, and generate with it."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from automodel_recipes.errors import RecipeError
from automodel_recipes.places import Place


def load_for_inference(place: Place, *, base_model: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer.

    Args:
        place: what to load; an adapter is put on the base model that it names.
        base_model: another place of the same base model.
        device: where the model goes.

    Raises: RecipeError: the place holds a training checkpoint, which has no standalone form, or the base is absent.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if place.kind == "checkpoint":
        return _load_checkpoint(place, device)
    if place.kind == "adapter":
        from peft import PeftModel

        from automodel_ckpt import grow_for_adapter

        base = base_model or place.base_model
        if not base:
            raise RecipeError(f"{place.path} names no base model. Give one by --base-model.")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        grow_for_adapter(plain, place.path)
        model = PeftModel.from_pretrained(plain, place.path)
    else:
        model = AutoModelForCausalLM.from_pretrained(place.path, dtype="auto")
    has_tokenizer = place.kind == "hub" or (Path(place.path) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(place.path if has_tokenizer else base_model or place.base_model)
    return model.to(device).eval(), tokenizer


def _load_checkpoint(place: Place, device: str) -> tuple[Any, Any]:
    """Rebuild the model from the run's own configuration and load the checkpoint's weights into it."""
    from automodel_recipes.build.data import build_tokenizer

    config = run_config(place)
    tokenizer = build_tokenizer(config)
    return rebuilt_model(place, config, tokenizer).to(device), tokenizer


def run_config(place: Place) -> Any:
    """The configuration of the run that a checkpoint is of. Raises: RecipeError: its record is missing."""
    from automodel_core.config import load_config

    record = (place.run or Path(place.path).parent) / "config.yaml"
    if not record.is_file():
        raise RecipeError(
            f"{place.path} is a training checkpoint and {record} is missing. Give the whole run directory."
        )
    return load_config(record)


def rebuilt_model(place: Place, config: Any, tokenizer: Any) -> Any:
    """The model of a run in eval mode, with the weights of a checkpoint."""
    from automodel_ckpt import load
    from automodel_recipes.build.model import build_model

    built = build_model(config, seed=0, tokenizer=tokenizer)
    load(place.path, {"model": built.model})
    return built.model.eval()


def encode_conversation(tokenizer: Any, messages: list[dict[str, str]]) -> torch.Tensor:
    """``[1, T]`` ids of a conversation up to the assistant's turn; plain text where there is no chat template."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return tokenizer(messages[-1]["content"], return_tensors="pt")["input_ids"]


def stop_token_ids(tokenizer: Any) -> list[int]:
    """End-of-text, and the end-of-turn token that the chat template writes after an answer."""
    ids = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = tokenizer.apply_chat_template(turn, tokenize=False)
        tail = text[text.rindex("b") + 1 :].strip()
        special = [i for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if i in tokenizer.all_special_ids]
        ids.update(special[:1])
    return sorted(ids)


def _written_adapter(place: Place, directory: Path) -> Place:
    """The adapter in a checkpoint, written as PEFT reads it. Raises: RecipeError: its run trained no adapter."""
    from automodel_ckpt import load, save_adapter
    from automodel_core.peft import adapter_config, adapter_state_dict
    from automodel_recipes.build.model import build_model
    from automodel_recipes.run import recipe_class

    config = run_config(place)
    if config.get("peft") is None:
        raise RecipeError(f"{place.path} is of a run without LoRA, so there is nothing to merge. Give a LoRA run.")
    recipe = recipe_class(config.get("recipe", "LLMFinetuneRecipe"), config.policy)(config)
    recipe.build_tokenizer()
    built = build_model(config, seed=0, tokenizer=recipe.tokenizer)
    load(place.path, {"model": built.model})
    keys: dict[str, Any] = {"tokenizer": recipe.tokenizer, "processor": recipe.processor}
    save_adapter(directory, adapter_state_dict(built.model), adapter_config(built.model, built.peft), **keys)
    return Place("adapter", str(directory))


def merge_adapter(place: Place, out: Path, *, base_model: str | None = None) -> None:
    """Write the base model with the adapter's weights added in, as a plain Hugging Face directory.

    Raises: RecipeError: the place is no adapter, ``out`` exists, or merging changed no weight.
    """
    from automodel_ckpt import export_hf
    from automodel_recipes.vlm.inference import is_multimodal, load_base_vlm, load_vlm

    if out.exists():
        raise RecipeError(f"{out} exists already. Choose another -o.")
    if place.kind == "checkpoint":
        with tempfile.TemporaryDirectory() as folder:
            merge_adapter(_written_adapter(place, Path(folder) / "adapter"), out, base_model=base_model)
        return
    if place.kind != "adapter":
        raise RecipeError(f"{place.path} is no adapter, so there is nothing to merge. Give a LoRA run or adapter.")
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
        raise RecipeError(f"merging {place.path} changed no weight of {place.base_model}: the adapter is empty.")
    export_hf(merged, out, **keys)

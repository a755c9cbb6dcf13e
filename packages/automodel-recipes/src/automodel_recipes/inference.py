"""Load what a run made, through plain transformers and peft, and generate with it."""

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
    return rebuilt(place, config, tokenizer).model.to(device).eval(), tokenizer


def run_config(place: Place) -> Any:
    """The configuration of the run that a checkpoint is of. Raises: RecipeError: its record is missing."""
    from automodel_core.config import load_config

    record = (place.run or Path(place.path).parent) / "config.yaml"
    if not record.is_file():
        raise RecipeError(
            f"{place.path} is a training checkpoint and {record} is missing. Give the whole run directory."
        )
    return load_config(record)


def rebuilt(place: Place, config: Any, tokenizer: Any) -> Any:
    """The built model of a run with a checkpoint's weights, as the run hands them on: averages, where it keeps some."""
    from automodel_ckpt import load
    from automodel_recipes.build.model import build_model
    from automodel_recipes.build.training import build_ema

    built = build_model(config, seed=0, tokenizer=tokenizer)
    ema = build_ema(config, built.model)
    load(place.path, {"model": built.model} if ema is None else {"model": built.model, "ema": ema})
    if ema is not None:
        ema.copy_to_model()
    return built


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

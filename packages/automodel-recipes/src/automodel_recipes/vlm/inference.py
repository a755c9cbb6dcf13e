"""Ask a finished vision-language model about images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.errors import RecipeError
from automodel_recipes.places import Place

if TYPE_CHECKING:
    from automodel_recipes.talking import Turn


def load_vlm(place: Place, *, base_model: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """A model in eval mode and its processor, from a full run, a checkpoint, an adapter or a model directory.

    Raises: RecipeError: an adapter that names no base model, or a checkpoint without its run's record.
    """
    from automodel_data.collate.families.parts import load_processor

    if place.kind == "checkpoint":
        return _load_checkpoint(place, device)
    source = base_model or place.base_model if place.kind == "adapter" else place.path
    if not source:
        raise RecipeError(f"{place.path} names no base model. Give one by --base-model.")
    model = load_base_vlm(source)
    if place.kind == "adapter":
        from peft import PeftModel

        from automodel_ckpt import grow_for_adapter

        grow_for_adapter(model, place.path)
        model = PeftModel.from_pretrained(model, place.path)
    has_processor = (Path(place.path) / "processor_config.json").is_file()
    return model.to(device).eval(), load_processor(str(place.path if has_processor else source))


def load_base_vlm(source: str) -> Any:
    """A multimodal model as training sees it, in eval mode."""
    from automodel_core import NeMoAutoModelForImageTextToText
    from automodel_recipes.vlm.repairs import see_whole_images

    model = NeMoAutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    see_whole_images(model)
    return model.eval()


def _load_checkpoint(place: Place, device: str) -> tuple[Any, Any]:
    from automodel_recipes.inference import rebuilt, run_config
    from automodel_recipes.vlm.finetune import build_processor

    config = run_config(place)
    processor = build_processor(config)
    return rebuilt(place, config, processor.tokenizer).model.to(device).eval(), processor


def is_multimodal(place: Place) -> bool:
    """Whether the model takes more than text, by its configuration or its run's recipe."""
    if place.kind == "checkpoint":
        return _is_vlm_run(place)
    source = place.base_model if place.kind == "adapter" else place.path
    if source is None:
        return False
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    return any(getattr(config, f"{kind}_config", None) is not None for kind in ("vision", "audio"))


def _is_vlm_run(place: Place) -> bool:
    from automodel_recipes.inference import run_config

    return str(run_config(place).get("recipe", "")).rpartition(".")[2].startswith("VLM")


def needs_processor(place: Place) -> bool:
    """Whether plain text generation cannot load this model: transformers knows it as image-text, not as causal."""
    if place.kind == "checkpoint":
        return _is_vlm_run(place)
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    source = place.base_model if place.kind == "adapter" else place.path
    if source is None:
        return False
    kind = AutoConfig.from_pretrained(source).model_type
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def encode_turns(processor: Any, turns: "Sequence[Turn]") -> tuple[dict[str, torch.Tensor], list[int]]:
    """A conversation up to where the model's answer begins, as the inputs of ``generate``, and where answers stop.

    Args:
        processor: from `load_vlm`.
        turns: images are paths of local files; the media limits of training hold.

    Raises: BadRow: an image that cannot be read or is above the limits.
    """
    from automodel_data.collate.families import adapter_for
    from automodel_data.media import MediaLimits, load_image
    from automodel_data.vlm.conversation import parse_row

    adapter = adapter_for(processor)
    paths = [Path(image).resolve() for turn in turns for image in turn.images]
    limits = MediaLimits(roots=tuple({str(path.parent) for path in paths}))
    pictures = [load_image(str(path), limits) for path in paths]
    remaining = iter(pictures)
    messages = [{"role": turn.role, "content": _content(turn, remaining)} for turn in turns]
    ids = adapter.encode_prompt(parse_row({"messages": messages}), [picture.size for picture in pictures])
    features = adapter.features(pictures, [])
    columns = {key: torch.tensor([column]) for key, column in adapter.token_columns(ids, [-100] * len(ids)).items()}
    inputs = {"input_ids": torch.tensor([ids]), **columns, **(adapter.stack([features]) if features else {})}
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}, _stop_ids(adapter)


def _content(turn: "Turn", pictures: Iterator[Any]) -> Any:
    parts = [{"type": "image", "image": next(pictures)} for _ in turn.images]
    return [*parts, {"type": "text", "text": turn.text}] if parts else turn.text


def _stop_ids(adapter: Any) -> list[int]:
    """End-of-text, and what the family's template writes after an answer."""
    from automodel_data.vlm.conversation import parse_row

    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    labels = adapter.encode(parse_row({"messages": turn}), []).labels
    last, tokenizer = int(labels[labels != -100][-1]), adapter.tokenizer
    ends = {tokenizer.eos_token_id, last if last in tokenizer.all_special_ids else None}
    return sorted(ends - {None})

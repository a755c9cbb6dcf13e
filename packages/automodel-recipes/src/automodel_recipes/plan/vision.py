"""Vision-language micro-batches of the right shapes, from a model's dimensions alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_recipes.batches import Batch
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.plan.inputs import PlannedRows, micro_batch_size

# Side of the square image that families which take any size are planned for, in pixels.
IMAGE_SIDE = 672


def is_vision(config: ConfigNode) -> bool:
    """Whether the configuration trains a model on images."""
    return str(config.get("recipe", "")).startswith("VLM")


def vision_micro_batches(config: ConfigNode, rows: PlannedRows, *, number: int) -> Callable[[Any], Sequence[Batch]]:
    """``number`` micro-batches with one image in every row, all of whose text is supervised."""

    def build(r: Any) -> Sequence[Batch]:
        size = micro_batch_size(config)
        image_tokens, media = _media(r.unwrapped().config, size)
        length = rows.length if rows.length > image_tokens else image_tokens + rows.length
        model = r.unwrapped().config
        image_id = getattr(model, "image_token_id", None) or getattr(model, "image_token_index", None)
        ids = torch.ones(size, length, dtype=torch.int64)
        ids[:, 1 : 1 + image_tokens] = int(image_id or 0)
        labels = ids.masked_fill(ids == int(image_id or 0), -100)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), **media}
        if model.model_type == "gemma3":
            batch["token_type_ids"] = (ids == image_id).long()
        return [batch] * number

    return build


def _media(model: Any, size: int) -> tuple[int, Batch]:
    """Image tokens of a row, and what the family's processor makes of ``size`` images."""
    kind, vision = model.model_type, model.vision_config
    if "vl" in kind and hasattr(vision, "spatial_merge_size"):
        side = IMAGE_SIDE // (vision.patch_size * vision.spatial_merge_size) * vision.spatial_merge_size
        width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, side, side]] * size)
        return side**2 // vision.spatial_merge_size**2, {
            "pixel_values": torch.ones(size * side**2, width),
            "image_grid_thw": grid,
        }
    pixels = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    image = torch.ones(size, 3, pixels, pixels)
    patches = (pixels // vision.patch_size) ** 2
    if kind == "gemma3":
        return int(model.mm_tokens_per_image), {"pixel_values": image}
    if kind in ("smolvlm", "idefics3"):
        mask = torch.ones(size, 1, pixels, pixels, dtype=torch.bool)
        return patches // model.scale_factor**2, {"pixel_values": image[:, None], "pixel_attention_mask": mask}
    if kind == "llava":
        return patches, {"pixel_values": image}
    raise UnusableInputError(
        f"plan knows no image inputs for model_type {kind!r}: known are llava, gemma3, smolvlm, idefics3 and the "
        "Qwen-VL families. Plan its text by NeMoAutoModelForCausalLM, or run train --preflight on the machine."
    )

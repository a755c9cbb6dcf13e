"""Freeze parts of a model, by group or by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from automodel_core.peft.matching import matches

# Parts of module names by which transformers' vision-language models call their towers.
_TOWERS = {
    "vision": (
        "vision_tower",
        "vision_model",
        "visual",
        "vision_encoder",
        "image_encoder",
        "img_processor",
        "vision_embed_tokens",
    ),
    "audio": ("audio_tower", "audio_model", "audio_encoder", "embed_audio", "audio_embed"),
    "language": ("language_model", "text_model"),
}


@dataclass(frozen=True)
class FreezeReport:
    """What ``apply_freezing`` changed."""

    frozen: dict[str, int]
    """Parameters frozen, by the setting that asked for it."""
    num_trainable: int
    num_parameters: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.frozen.items()) or "nothing"
        return f"frozen: {parts}; {self.num_trainable:,} of {self.num_parameters:,} parameters train"


def apply_freezing(
    model: Any,
    *,
    freeze_embeddings: bool = False,
    freeze_vision_tower: bool = False,
    freeze_audio_tower: bool = False,
    freeze_language_model: bool = False,
    freeze_modules: Sequence[str] = (),
    unfreeze_modules: Sequence[str] = (),
) -> FreezeReport:
    """Freeze what is named and nothing else, in place.

    Args:
        model: any transformers model.
        freeze_embeddings: every ``nn.Embedding``; a head that is tied to one goes with it.
        freeze_vision_tower, freeze_audio_tower, freeze_language_model: that part of a multimodal model.
        freeze_modules: wildcards on module names, everything below included.
        unfreeze_modules: the same, to train again; applied last.

    Raises: ValueError: a setting matches nothing, or nothing is left to train; it names the setting.
    """
    asked: dict[str, Callable[[str, nn.Module], bool]] = {}
    if freeze_embeddings:
        asked["freeze_embeddings"] = lambda name, module: isinstance(module, nn.Embedding)
    for part, wanted in (
        ("vision", freeze_vision_tower),
        ("audio", freeze_audio_tower),
        ("language", freeze_language_model),
    ):
        if wanted:
            key = "freeze_language_model" if part == "language" else f"freeze_{part}_tower"
            asked[key] = _is_tower(_TOWERS[part])
    asked.update({pattern: _is_named(pattern) for pattern in freeze_modules})
    frozen = {key: _set(model, key, wanted, trainable=False) for key, wanted in asked.items()}
    for pattern in unfreeze_modules:
        _set(model, pattern, _is_named(pattern), trainable=True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise ValueError(
            f"{', '.join(asked)} freeze the whole model: something must train. Freeze less, or unfreeze_modules."
        )
    return FreezeReport(frozen, trainable, sum(p.numel() for p in model.parameters()))


def _is_tower(names: Sequence[str]) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: name.rsplit(".", 1)[-1] in names


def _is_named(pattern: str) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: matches(pattern, name)


def _set(model: nn.Module, key: str, wanted: Callable[[str, nn.Module], bool], *, trainable: bool) -> int:
    found = [module for name, module in model.named_modules() if name and wanted(name, module)]
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_modules() if name})
        raise ValueError(
            f"{key} matches no module of {type(model).__name__}: it has {', '.join(parts[:12])}. Correct it."
        )
    parameters = {id(p): p for module in found for p in module.parameters()}
    for parameter in parameters.values():
        parameter.requires_grad_(trainable)
    return sum(p.numel() for p in parameters.values())

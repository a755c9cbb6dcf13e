"""Weights of a vision tower that no forward reaches, since the model takes features from before them.

They get no gradient whatever one does, so freezing them changes no training. Left trainable, they are counted as
trained, and distributed wrappers wait for their gradients for ever.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

_TOWER = r"\b(?:vision_tower|image_embed\.img_processor)\.(?:vision_model\.)?"
_LAYER = re.compile(_TOWER + r"encoder\.layers\.(\d+)\.")
_BEHIND_ALL_LAYERS = re.compile(_TOWER + r"(?:post_layernorm|head)\.")
_POOLING = re.compile(r"\bvision_tower\.(?:vision_model\.)?head\.")
# Families whose features are the tower's last normed hidden states: only its pooling head lies behind them.
_LAST_STATES = ("gemma3", "paligemma")


@dataclass(frozen=True)
class UnreachedReport:
    """What was frozen because nothing reaches it."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"unreached: {len(self.names)} parameters behind the vision features are frozen ({self.names[0]}, ...)"


def freeze_unreached(model: nn.Module) -> UnreachedReport | None:
    """Freeze the trainable parameters that `unreached` names; None where there are none."""
    parameters = dict(model.named_parameters())
    names = tuple(name for name in unreached(model) if parameters[name].requires_grad)
    for name in names:
        parameters[name].requires_grad_(False)
    return UnreachedReport(names) if names else None


def unreached(model: nn.Module) -> list[str]:
    """Names of the parameters behind the features that a LLaVA, Gemma 3, PaliGemma or Phi-4 shape takes."""
    config: Any = getattr(model, "config", None)
    names = [name for name, _ in model.named_parameters()]
    if getattr(config, "model_type", None) in _LAST_STATES:
        return [name for name in names if _POOLING.search(name)]
    tower = getattr(config, "vision_config", None)
    layers = getattr(config, "vision_feature_layer", getattr(tower, "feature_layer", None))
    depth = getattr(tower, "num_hidden_layers", None)
    if layers is None or depth is None:
        return []
    chosen = layers if isinstance(layers, (list, tuple)) else [layers]
    # Hidden state k is what layer k - 1 gives; state 0 is the embedding, and -1 the last layer's.
    last = max(layer if layer >= 0 else depth + 1 + layer for layer in chosen)
    return [name for name in names if _is_behind(name, last)]


def _is_behind(name: str, last: int) -> bool:
    layer = _LAYER.search(name)
    return int(layer.group(1)) >= last if layer else _BEHIND_ALL_LAYERS.search(name) is not None


def idle_without(model: nn.Module, kinds: Collection[str]) -> list[str]:
    """Trainable parameters of Phi-4-multimodal that data of these kinds of media never reach, blanks included."""
    if getattr(getattr(model, "config", None), "model_type", None) != "phi4_multimodal":
        return []
    idle = {
        "audio": (".audio_embed.",),
        "image": (".image_embed.", "_proj_for_vision_speech."),
    }
    parts = [part for kind, parts in idle.items() if kind not in kinds for part in parts]
    return [name for name, p in model.named_parameters() if p.requires_grad and any(part in name for part in parts)]

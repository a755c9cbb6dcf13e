"""Several adapters for one base model: kept, switched, combined."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from automodel_core.peft.apply import apply_lora
from automodel_core.peft.hf_format import (
    adapter_state_dict,
    config_from_adapter,
    load_adapter_state_dict,
    lora_layers,
)
from automodel_core.peft.merge import unload_lora

Adapter = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors under ``peft``'s names, and the content of ``adapter_config.json``."""


class AdapterBank:
    """Adapters by name, of which one at a time is on the model and can be trained.

    The others are plain tensors, so they may differ in rank and targets and cost nothing in forward.

    Args:
        model: a base model without adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        if lora_layers(model):
            raise ValueError(
                "AdapterBank on a model with LoRA layers: it starts from a base model. Call unload_lora first."
            )
        self.model = model
        self.active: str | None = None
        self._adapters: dict[str, Adapter] = {}

    @property
    def names(self) -> list[str]:
        """Adapters, in the order in which they came."""
        return list(self._adapters)

    def add(self, name: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Keep an adapter; it is checked against the model when it is switched on.

        Raises: ValueError: the name is taken.
        """
        if name in self._adapters:
            raise ValueError(f"adapter {name!r} is there already: names are unique. Choose another name.")
        self._adapters[name] = (dict(tensors), dict(config))

    def switch(self, name: str | None) -> None:
        """Put an adapter on the model, after keeping what training made of the one that was on it; None: none.

        Raises: ValueError: there is no such adapter, or it does not fit the model.
        """
        if name is not None and name not in self._adapters:
            raise ValueError(f"no adapter {name!r}: there are {', '.join(self.names) or 'none'}. Add it first.")
        if self.active is not None:
            _, config = self._adapters[self.active]
            self._adapters[self.active] = (_copies(adapter_state_dict(self.model)), config)
            unload_lora(self.model)
            self.active = None
        if name is None:
            return
        tensors, config = self._adapters[name]
        apply_lora(self.model, config_from_adapter(config, model=self.model))
        load_adapter_state_dict(self.model, tensors)
        self.active = name

    def get(self, name: str) -> Adapter:
        """An adapter's tensors and config; those of the active one as they are on the model."""
        tensors, config = self._adapters[name]
        return (_copies(adapter_state_dict(self.model)) if name == self.active else tensors), config


def combine_adapters(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """One adapter whose change is the weighted sum of several: exact, by putting their ranks side by side.

    Args:
        adapters: plain LoRA or rsLoRA on the same modules; ranks may differ.
        weights: one factor each.

    Returns: tensors and config of an adapter whose rank is the sum of theirs.
    Raises: ValueError: DoRA, fully trained modules or different modules, which have no such sum.
    """
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight to each adapter.")
    keys = [key for key in adapters[0][0] if key.endswith("lora_A.weight")]
    for tensors, config in adapters:
        pairs = {k for k in tensors if k.endswith(("lora_A.weight", "lora_B.weight"))}
        if config.get("use_dora") or pairs != set(tensors) or pairs != set(adapters[0][0]):
            raise ValueError(
                "combine_adapters takes plain LoRA on the same modules: DoRA, modules_to_save and different "
                "targets have no "
                "weighted sum. Merge such adapters into the base one after the other."
            )
    combined: dict[str, torch.Tensor] = {}
    for key in keys:
        other = key.replace("lora_A", "lora_B")
        combined[key] = torch.cat([tensors[key] for tensors, _ in adapters])
        scaled = [t[other] * (w * config_from_adapter(c).scaling) for (t, c), w in zip(adapters, weights, strict=True)]
        combined[other] = torch.cat(scaled, dim=1)
    rank = combined[keys[0]].shape[0]
    return combined, {**adapters[0][1], "r": rank, "lora_alpha": rank, "use_rslora": False}


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in tensors.items()}

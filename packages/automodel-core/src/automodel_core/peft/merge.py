"""Fold adapters into the base weights, take them out again, or remove them."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.peft.base_weight import is_quantized
from automodel_core.peft.experts import ExpertAdapter, adapters_with_weights, unload_experts
from automodel_core.peft.hf_format import lora_layers
from automodel_core.peft.lora import LoRALayer, unpatch_linear_module
from automodel_core.peft.token_rows import unload_token_rows


@dataclass(frozen=True)
class MergeReport:
    """What a merge changed."""

    modules: tuple[str, ...]
    largest_change: float
    """Largest absolute change of any weight."""


@torch.no_grad()
def merge_lora(model: nn.Module, *, unload: bool = False) -> MergeReport:
    """Add every adapter to its base weight; the model's outputs stay, up to rounding.

    Args:
        model: a model with LoRA layers or adapted expert weights, not sharded.
        unload: also remove the adapters, so that the model is what it was before ``apply_lora`` but for its weights.
            Trained token rows are written into the embedding then; until then they stay beside it.

    Raises: ValueError: no adapter, merged already, a quantised or sharded or tied weight, or nothing would change.
    """
    layers, experts = lora_layers(model), adapters_with_weights(model)
    _check_mergeable(model, layers, experts)
    changes = [_merge_layer(layer) for _, layer in layers]
    changes += [_merge_experts(adapter, weight) for _, adapter, weight in experts]
    largest = max(changes)
    if largest == 0.0:
        for _, layer in layers:
            layer.merged = False
        for _, adapter, _ in experts:
            adapter.merged = False
        raise ValueError(
            "merging changed no weight: every adapter is zero, or too small for the base's dtype. Check that "
            "the adapter "
            "was trained and loaded, or merge in float32."
        )
    names = (*(name for name, _ in layers), *(name for name, _, _ in experts))
    if unload:
        unload_token_rows(model, write=True)
        unload_lora(model)
    return MergeReport(names, largest)


@torch.no_grad()
def unmerge_lora(model: nn.Module) -> None:
    """Take merged adapters out of the base weights again, to rounding in the weight's dtype.

    Raises: ValueError: nothing is merged.
    """
    layers = [layer for _, layer in lora_layers(model) if layer.merged]
    experts = [(adapter, weight) for _, adapter, weight in adapters_with_weights(model) if adapter.merged]
    if not layers and not experts:
        raise ValueError(
            "unmerge_lora on a model without merged adapters: there is nothing to undo. Call merge_lora first."
        )
    for layer in layers:
        weight = layer.weight.float()
        if layer.use_dora:
            weight = weight * (layer.dora_merged_norm / layer.lora_magnitude_vector.float()).unsqueeze(-1)
            del layer.dora_merged_norm
        layer.weight.copy_(weight - layer.delta_weight().float())
        layer.merged = False
    for adapter, weight in experts:
        weight.copy_(weight.float() - adapter.delta().float())
        adapter.merged = False


@torch.no_grad()
def unload_lora(model: nn.Module) -> None:
    """Remove every adapter and every trained token row: layers get their own classes back, and the base its weights.

    Merged weights stay merged. A PiSSA adapter that is not merged gives back the part that it took from the base.

    Raises: ValueError: the model has no adapter.
    """
    layers = lora_layers(model)
    if not layers and not adapters_with_weights(model):
        raise ValueError(
            "unload_lora on a model without LoRA layers: there is nothing to remove. Call apply_lora first."
        )
    for _, layer in layers:
        if hasattr(layer, "pissa_A") and not layer.merged:
            layer.weight.add_((layer.scaling * layer.pissa_B @ layer.pissa_A).to(layer.weight.dtype))
        unpatch_linear_module(layer)
    unload_experts(model)
    unload_token_rows(model, write=False)


def _merge_layer(layer: LoRALayer) -> float:
    changed = layer.effective_weight()
    change = (changed.float() - layer.weight.float()).abs().max().item()
    if layer.use_dora:
        layer.register_buffer("dora_merged_norm", layer.direction_norm().float(), persistent=False)
    layer.weight.copy_(changed)
    layer.merged = True
    return change


def _merge_experts(adapter: ExpertAdapter, weight: torch.Tensor) -> float:
    changed = (weight.float() + adapter.delta().float()).to(weight.dtype)
    change = (changed.float() - weight.float()).abs().max().item()
    weight.copy_(changed)
    adapter.merged = True
    return change


def _check_mergeable(
    model: nn.Module,
    layers: list[tuple[str, LoRALayer]],
    experts: list[tuple[str, ExpertAdapter, torch.Tensor]],
) -> None:
    if not layers and not experts:
        raise ValueError("merge_lora on a model without LoRA layers: there is nothing to merge. Call apply_lora first.")
    for name, adapter, weight in experts:
        if adapter.merged:
            raise ValueError(f"{name} is merged already: merging twice would add it twice. Call unmerge_lora first.")
        if isinstance(weight, DTensor):
            raise ValueError(
                f"{name} is sharded: a merge needs the whole weight. Load the base model plainly, load the adapter "
                "into it, and merge there."
            )
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in layers:
        if layer.merged:
            raise ValueError(f"{name} is merged already: merging twice would add it twice. Call unmerge_lora first.")
        if is_quantized(layer) or isinstance(layer.weight, DTensor):
            raise ValueError(
                f"{name} has a quantised or sharded weight: a merge needs the whole floating-point one. Load the base "
                "model plainly, load the adapter into it, and merge there."
            )
        if len(owners[id(layer.weight)]) > 1:
            raise ValueError(
                f"{name}.weight is tied to "
                f"{' and '.join(n for n in owners[id(layer.weight)] if n != f'{name}.weight')}: "
                "merging would change both. Untie them (tie_word_embeddings: false) before training, or serve "
                "the adapter unmerged."
            )

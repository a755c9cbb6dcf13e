"""Adapters in the format of the ``peft`` library: its names on disk, its own config class."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.peft.config import PeftConfig
from automodel_core.peft.init import assign
from automodel_core.peft.lora import LoRALayer

_PREFIX = "base_model.model."
_LORA_PART = re.compile(r"(^|\.)(lora_A|lora_B|lora_magnitude_vector|dropout|token_rows)(\.|$)")


@torch.no_grad()
def adapter_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that was trained, under the names that ``peft`` reads from disk.

    Sharded tensors are gathered: with a sharded model every rank must call it. A PiSSA adapter becomes an ordinary
    LoRA of twice the rank, so that it works on the untouched base model.

    Raises: ValueError: the model has no adapter.
    """
    if hasattr(model, "peft_config_in_place"):
        return _external_state_dict(model)
    _require_adapter(model)
    return {key: _whole(tensor).detach() for key, tensor in _disk_tensors(model).items()}


@torch.no_grad()
def load_adapter_state_dict(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an adapter's tensors into a model whose ``apply_lora`` made room for them, to evaluate or train on.

    Raises: ValueError: keys or shapes do not fit, as with an adapter of another base model; it names them.
    """
    _require_adapter(model)
    from automodel_core.peft.experts import expert_adapters
    from automodel_core.peft.token_rows import token_row_tensors

    places: dict[str, torch.Tensor] = {}
    for name, layer in lora_layers(model):
        if hasattr(layer, "pissa_A"):
            # The exported adapter holds the whole change, so the base takes its principal part back.
            layer.weight.add_((layer.scaling * layer.pissa_B @ layer.pissa_A).to(layer.weight.dtype))
            _drop_pissa(layer, rank=2 * layer.lora_A.out_features, tensors=tensors, name=name)
        places.update({f"{_PREFIX}{name}.{part}": p for part, p in layer_parts(layer)})
    places.update(expert_adapters(model, _PREFIX))
    places.update(token_row_tensors(model, _PREFIX))
    places.update(_saved_in_full(model))
    _check_fit(places, tensors)
    for key, place in places.items():
        assign(place, tensors[key])


def adapter_config(model: nn.Module, config: PeftConfig) -> dict[str, Any]:
    """A complete ``adapter_config.json``, made by ``peft``'s own class; ``peft`` adapts the very same modules.

    Raises: ValueError: the model has no adapter.
    """
    if not isinstance(config, PeftConfig):
        return _plain(config.to_dict())
    from peft import LoraConfig

    from automodel_core.peft.token_rows import trained_indices

    _require_adapter(model)
    names = [name for name, _ in lora_layers(model)]
    pissa = config.lora_A_init == "pissa"
    # Twice the rank at the same scaling.
    alpha = config.alpha * ((math.sqrt(2) if config.use_rslora else 2) if pissa else 1)
    made = LoraConfig(
        r=config.dim * (2 if pissa else 1),
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=config.dropout,
        bias="none",
        target_modules=_peft_targets(model, names) if names else [],
        target_parameters=_target_parameters(model) or None,
        modules_to_save=sorted(_modules_in_full(model)) or None,
        trainable_token_indices=trained_indices(model) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True,
        task_type=_task_type(model),
        base_model_name_or_path=getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        inference_mode=True,
    )
    return _plain(made.to_dict())


def config_from_adapter(adapter_config: Mapping[str, Any], *, model: nn.Module | None = None) -> PeftConfig:
    """The ``PeftConfig`` that goes on training an adapter of the ``peft`` library.

    Args:
        adapter_config: the content of ``adapter_config.json``.
        model: to turn a regular expression among the targets into names.

    Raises: ValueError: no LoRA, or a LoRA with parts that ``PeftConfig`` has no word for.
    """
    kind = adapter_config.get("peft_type", "LORA")
    odd = [key for key in ("rank_pattern", "alpha_pattern", "layers_to_transform") if adapter_config.get(key)]
    if kind != "LORA" or odd or adapter_config.get("bias", "none") != "none":
        raise ValueError(
            f"an adapter of type {kind} with {', '.join(odd) or 'bias ' + str(adapter_config.get('bias'))}: "
            "only plain LoRA, "
            "rsLoRA and DoRA are read into PeftConfig. Hand the peft config itself to apply_lora for the others."
        )
    targets = adapter_config.get("target_modules") or []
    if isinstance(targets, str):
        targets = _targets_of_expression(targets, model)
    return PeftConfig(
        target_modules=sorted(targets),
        dim=int(adapter_config["r"]),
        alpha=float(adapter_config["lora_alpha"]),
        dropout=float(adapter_config.get("lora_dropout") or 0.0),
        dropout_position="pre",
        use_rslora=bool(adapter_config.get("use_rslora")),
        use_dora=bool(adapter_config.get("use_dora")),
        modules_to_save=list(adapter_config.get("modules_to_save") or []),
        target_parameters=list(adapter_config.get("target_parameters") or []),
        trainable_token_indices=adapter_config.get("trainable_token_indices") or [],
    )


def _external_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """Tensors of a method that ``peft`` injected, under the names that its own saving gives them."""
    from peft import get_peft_model_state_dict

    model.peft_config, had = {"default": model.peft_config_in_place}, getattr(model, "peft_config", None)
    try:
        tensors = get_peft_model_state_dict(model)
    finally:
        model.peft_config = had
        if had is None:
            del model.peft_config
    return {_PREFIX + key.removeprefix(_PREFIX): _whole(tensor).detach() for key, tensor in tensors.items()}


def lora_layers(model: nn.Module) -> list[tuple[str, LoRALayer]]:
    """Layers with an adapter, by name, in the model's order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALayer)]


def layer_parts(layer: LoRALayer) -> list[tuple[str, torch.Tensor]]:
    """A layer's adapter tensors with their names on disk."""
    parts = [("lora_A.weight", layer.lora_A.weight), ("lora_B.weight", layer.lora_B.weight)]
    if layer.use_dora:
        parts.append(("lora_magnitude_vector", layer.lora_magnitude_vector))
    return parts


def _disk_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    from automodel_core.peft.experts import expert_adapters
    from automodel_core.peft.token_rows import token_row_tensors

    tensors: dict[str, torch.Tensor] = {}
    for name, layer in lora_layers(model):
        a, b = layer.lora_A.weight, layer.lora_B.weight
        parts = layer_parts(layer)
        if hasattr(layer, "pissa_A"):
            parts = [
                ("lora_A.weight", torch.cat([_whole(a), layer.pissa_A.to(a.dtype)])),
                ("lora_B.weight", torch.cat([_whole(b), -layer.pissa_B.to(b.dtype)], dim=1)),
            ]
        tensors.update({f"{_PREFIX}{name}.{part}": tensor for part, tensor in parts})
    rows = token_row_tensors(model, _PREFIX)
    return tensors | expert_adapters(model, _PREFIX) | rows | _saved_in_full(model)


def _saved_in_full(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters that are no adapter, tied ones under each of their names."""
    return {
        _PREFIX + name: p
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.requires_grad and not _LORA_PART.search(name)
    }


def _modules_in_full(model: nn.Module) -> set[str]:
    return {key.removeprefix(_PREFIX).rsplit(".", 1)[0] for key in _saved_in_full(model)}


def _target_parameters(model: nn.Module) -> list[str]:
    from automodel_core.peft.experts import adapted_parameters

    return adapted_parameters(model)


def _peft_targets(model: nn.Module, names: list[str]) -> "list[str] | str":
    """The shortest ``target_modules`` for which ``peft`` matches these modules and no other."""
    everything = [name for name, _ in model.named_modules() if name and not _LORA_PART.search(name)]
    regex = "|".join(re.escape(name) for name in names)
    candidates: tuple[list[str] | str, ...] = (sorted({name.rsplit(".", 1)[-1] for name in names}), names, f"({regex})")
    for targets in candidates:
        if _peft_matches(targets, everything) == set(names):
            return targets
    raise AssertionError(f"no target_modules makes peft match exactly {names}")


def _peft_matches(targets: "list[str] | str", names: list[str]) -> set[str]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets)
    return {name for name in names if check_target_module_exists(config, name)}


def _targets_of_expression(expression: str, model: nn.Module | None) -> list[str]:
    if model is None:
        raise ValueError(
            f"target_modules is the expression {expression!r}: PeftConfig takes names and wildcards. "
            "Pass model=, so that it can be turned into names."
        )
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted(_peft_matches(expression, names))


def _task_type(model: nn.Module) -> str | None:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) else None


def _require_adapter(model: nn.Module) -> None:
    from automodel_core.peft.experts import adapted_parameters

    if not lora_layers(model) and not adapted_parameters(model):
        raise ValueError("the model has no LoRA layer: there is no adapter to read or write. Call apply_lora first.")


def _drop_pissa(layer: LoRALayer, *, rank: int, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    del layer.pissa_A, layer.pissa_B
    like = layer.lora_A.weight
    if getattr(tensors.get(f"{_PREFIX}{name}.lora_A.weight"), "shape", (0,))[0] != rank:
        return
    layer.lora_A = nn.Linear(layer.in_features, rank, bias=False, device=like.device, dtype=like.dtype)
    layer.lora_B = nn.Linear(rank, layer.out_features, bias=False, device=like.device, dtype=like.dtype)


def _check_fit(places: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    problems = {
        "missing": sorted(set(places) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(places)),
        "another shape": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(places[key].shape)}"
            for key in sorted(set(places) & set(tensors))
            if tensors[key].shape != places[key].shape
        ],
    }
    said = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:3])}" for kind, keys in problems.items() if keys)
    if said:
        raise ValueError(
            f"the adapter does not fit the model ({said}): keys and shapes must agree. Use the base model that the "
            "adapter was trained on, and a PeftConfig from its adapter_config.json (config_from_adapter)."
        )


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _plain(value: Any) -> Any:
    """JSON values only: peft's config holds sets and enums."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)

"""The tensors of an ``nn.Module`` by their Hugging Face names, for saving and for loading in place."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automodel_ckpt.errors import UnsupportedState

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


@dataclass(frozen=True)
class ModelTensors:
    """What a module holds.

    ``tensors`` share storage with the module. ``aliases`` maps a tied name to the name that stands for both.
    ``frozen`` holds the shapes of tensors that the caller left out. ``extra`` holds non-tensor module state.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str]
    frozen: dict[str, tuple[int, ...]] | None
    extra: dict[str, Any] = field(default_factory=dict)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, whose own names start with ``module.``."""
    while isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        module = module.module
    return module


def clean_name(name: str) -> str:
    """A parameter name without the parts that ``torch.compile`` and activation checkpointing add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def parameter_names(module: nn.Module) -> dict[int, str]:
    """``id(parameter)`` -> name; of a tied parameter, its first name."""
    names: dict[int, str] = {}
    for name, parameter in unwrap(module).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), clean_name(name))
    return names


def model_tensors(
    module: nn.Module, *, keep: Callable[[str], bool] | None = None, trainable_only: bool = False
) -> ModelTensors:
    """Collect the persistent tensors of a module, each stored once.

    Args:
        module: plain, DDP, FSDP2 or tensor parallel (DTensor parameters); FSDP1 is refused.
        keep: names for which this is false are left out and remembered by shape.
        trainable_only: keep parameters that require a gradient, and persistent buffers.

    Raises: UnsupportedState: FSDP1, or two tensors of one name.
    """
    module = unwrap(module)
    _refuse_fsdp1(module)
    first_names = _first_names(module)
    untrained = {clean_name(n) for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    left_out: dict[str, tuple[int, ...]] = {}
    for raw_name, value in module.state_dict().items():
        name = clean_name(raw_name)
        if not isinstance(value, Tensor):
            extra[name] = value.getvalue() if isinstance(value, io.BytesIO) else value
        elif (trainable_only and name in untrained) or (keep is not None and not keep(name)):
            left_out[name] = tuple(value.shape)
        elif first_names.get(name, name) != name:
            aliases[name] = first_names[name]
        elif name in tensors:
            raise UnsupportedState(f"two tensors are called {name!r} once wrapper names are removed. Rename one.")
        else:
            tensors[name] = value
    for alias, name in aliases.items():
        if name in left_out:
            left_out[alias] = left_out[name]
    aliases = {alias: name for alias, name in aliases.items() if name in tensors}
    return ModelTensors(tensors, aliases, left_out if trainable_only or keep is not None else None, extra)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every parameter and buffer name -> the first name of the same object."""
    by_id: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {clean_name(name): by_id.setdefault(id(tensor), clean_name(name)) for name, tensor in named}


def _refuse_fsdp1(module: nn.Module) -> None:
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(child, FullyShardedDataParallel) for child in module.modules()):
        raise UnsupportedState(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), which flattens parameters: plain modules, DDP, "
            "fully_shard (FSDP2) and DTensor parallelism are stored. Use torch.distributed.fsdp.fully_shard."
        )


def set_extra_state(module: nn.Module, extra: dict[str, Any]) -> None:
    """Give modules back the non-tensor state that ``get_extra_state`` returned."""
    children = {clean_name(name): child for name, child in unwrap(module).named_modules()}
    for name, value in extra.items():
        children[name.removesuffix("_extra_state").removesuffix(".")].set_extra_state(value)

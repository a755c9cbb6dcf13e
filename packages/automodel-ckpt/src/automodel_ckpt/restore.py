"""Match what a checkpoint holds with the objects that should get it, before a byte of them is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from automodel_ckpt.capture import all_parameter_names, is_stateful
from automodel_ckpt.dtypes import dtype_name, dtype_of
from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.manifest import Section
from automodel_ckpt.model_state import ModelTensors, model_tensors, set_extra_state
from automodel_ckpt.optimizer_state import allocate_state, apply_groups, group_differences, own_part
from automodel_ckpt.tree import decode, tensor_names


@dataclass
class Restore:
    """How one section is restored: fill ``targets`` (stored name -> live tensors), then call ``finish``."""

    targets: dict[str, list[Tensor]] = field(default_factory=dict)
    finish: Callable[[], None] = lambda: None
    missing: list[str] = field(default_factory=list)
    """Wanted here, absent from the checkpoint."""
    unexpected: list[str] = field(default_factory=list)
    """In the checkpoint, with no place here."""
    unplaced: list[str] = field(default_factory=list)
    """Left out or trained in the checkpoint, absent here: acceptable where another rank has it."""
    differences: list[str] = field(default_factory=list)
    """Other shape, dtype, tie or setting: never acceptable."""


def plan_restore(
    section: str,
    value: Any,
    stored: Section,
    tree: Any,
    state: Mapping[str, Any],
    *,
    rename: Callable[[str], str] | None = None,
    cast: bool = False,
) -> Restore:
    """Plan the restoration of one section into ``value``."""
    if isinstance(value, nn.Module):
        return _plan_module(value, stored, tree, rename, cast)
    if isinstance(value, Optimizer):
        return _plan_optimizer(value, stored, tree, all_parameter_names(state))
    if tree is None:
        return Restore(differences=[f"section {section!r} holds a model in the checkpoint, not plain state"])
    return _plan_plain(section, value, stored, tree)


def _plan_module(
    module: nn.Module, stored: Section, tree: Any, rename: Callable[[str], str] | None, cast: bool
) -> Restore:
    live = model_tensors(module, keep=None if stored.frozen is None else lambda name: _is_stored(name, stored))
    plan = Restore()
    for name, tensor in live.tensors.items():
        _match(plan, name, rename(name) if rename else name, tensor, stored, cast)
    _match_aliases(plan, live, stored)
    _match_frozen(plan, live, stored)
    wanted = set(plan.targets) | set(live.aliases) | set(live.aliases.values())
    inner = tensor_names(tree) if tree is not None else set()
    plan.unexpected = sorted((stored.tensors.keys() | stored.aliases.keys()) - wanted - inner - _sources(plan, stored))
    if tree is not None:
        extra = _allocate(stored, inner)
        plan.targets.update({name: [tensor] for name, tensor in extra.items()})
        plan.finish = lambda: set_extra_state(module, decode(tree, extra))
    return plan


def _allocate(stored: Section, names: Iterable[str]) -> dict[str, Tensor]:
    """Fresh CPU tensors for stored ones."""
    records = {name: stored.tensors[name] for name in names}
    return {name: torch.empty(record.shape, dtype=dtype_of(record.dtype)) for name, record in records.items()}


def _is_stored(name: str, stored: Section) -> bool:
    return name in stored.tensors or name in stored.aliases or name not in (stored.frozen or {})


def _sources(plan: Restore, stored: Section) -> set[str]:
    """Stored aliases whose bytes are loaded anyway."""
    return {alias for alias, name in stored.aliases.items() if name in plan.targets}


def _match(plan: Restore, name: str, wanted: str, tensor: Tensor, stored: Section, cast: bool) -> None:
    source = stored.aliases.get(wanted, wanted)
    record = stored.tensors.get(source)
    if record is None:
        plan.missing.append(name)
    elif record.shape != tuple(tensor.shape):
        plan.differences.append(f"{name}: shape {list(record.shape)} in the checkpoint, {list(tensor.shape)} here")
    elif record.dtype != dtype_name(tensor.dtype) and not cast:
        plan.differences.append(f"{name}: {record.dtype} in the checkpoint, {dtype_name(tensor.dtype)} here")
    else:
        plan.targets.setdefault(source, []).append(tensor)


def _match_aliases(plan: Restore, live: ModelTensors, stored: Section) -> None:
    for alias, name in live.aliases.items():
        if alias in stored.tensors and name in stored.tensors:
            plan.differences.append(f"{alias} is tied to {name} here, and was not when the checkpoint was written")
        elif name in plan.missing and alias in stored.tensors:  # tied as well, stored under the other name
            plan.missing.remove(name)
            _match(plan, name, alias, live.tensors[name], stored, cast=False)


def _match_frozen(plan: Restore, live: ModelTensors, stored: Section) -> None:
    """The tensors that were left out must exist here, in the same shapes: the base is the same model."""
    if stored.frozen is None:
        return
    here = live.frozen or {}
    for name in sorted(stored.frozen.keys() - here.keys()):
        plan.unplaced.append(f"{name}: part of the base model that was trained, absent here")
    for name in sorted(here.keys() & stored.frozen.keys()):
        if here[name] != stored.frozen[name]:
            plan.differences.append(f"{name}: base shape {list(stored.frozen[name])} then, {list(here[name])} here")


def _plan_optimizer(optimizer: Optimizer, stored: Section, tree: Any, names: dict[int, str]) -> Restore:
    problems, unplaced = group_differences(optimizer, tree["groups"], names)
    if problems:
        return Restore(differences=problems)
    tree = own_part(optimizer, tree, names)
    fresh = allocate_state(optimizer, names, tree["state"], stored.tensors)
    targets: dict[str, list[Tensor]] = {}
    by_name = {names[id(parameter)]: values for parameter, values in fresh.items()}
    for name, values in tree["state"].items():
        for key, value in values.items():
            if isinstance(value, dict) and "$tensor" in value:
                targets[value["$tensor"]] = [by_name[name][key]]
    others = _allocate(stored, tensor_names(tree) - targets.keys())
    targets.update({name: [tensor] for name, tensor in others.items()})

    def finish() -> None:
        for parameter, values in fresh.items():
            optimizer.state[parameter] = {
                key: value if isinstance(value, Tensor) else decode(value, others) for key, value in values.items()
            }
        for parameter in [p for p in optimizer.state if p not in fresh]:
            del optimizer.state[parameter]
        apply_groups(optimizer, decode(tree["groups"], others), names)

    return Restore(targets=targets, finish=finish, unplaced=unplaced)


def _plan_plain(section: str, value: Any, stored: Section, tree: Any) -> Restore:
    names = tensor_names(tree)
    loaded = _allocate(stored, names)
    plan = Restore(targets={name: [tensor] for name, tensor in loaded.items()})
    _match_keys(plan, section, value, tree)
    plan.finish = lambda: restore_plain(value, decode(tree, loaded), section)
    return plan


def _match_keys(plan: Restore, path: str, value: Any, tree: Any) -> None:
    """A dict must hold the stored keys wherever it holds objects that restore themselves."""
    if is_stateful(value) or not isinstance(value, dict) or not isinstance(tree, dict) or "$map" in tree:
        return
    for key, item in value.items():
        if key not in tree:
            if is_stateful(item) or isinstance(item, dict):
                plan.missing.append(f"{path}.{key}")
        else:
            _match_keys(plan, f"{path}.{key}", item, tree[key])


def restore_plain(value: Any, loaded: Any, path: str) -> None:
    """Give ``loaded`` to an object with ``load_state_dict``, or into a dict in place, in the dict's order.

    Raises: UnsupportedState: ``value`` is neither.
    """
    if is_stateful(value):
        value.load_state_dict(loaded)
        return
    if not isinstance(value, dict) or not isinstance(loaded, dict):
        raise UnsupportedState(
            f"{path} is a {type(value).__name__}: state is loaded into dicts and objects with load_state_dict()."
        )
    for key in [key for key in value if key not in loaded]:
        if not is_stateful(value[key]):
            del value[key]
    for key in [*[k for k in value if k in loaded], *[k for k in loaded if k not in value]]:
        holder = value.get(key)
        if is_stateful(holder) or (isinstance(holder, dict) and isinstance(loaded[key], dict)):
            restore_plain(holder, loaded[key], f"{path}.{key}")
        else:
            value[key] = loaded[key]

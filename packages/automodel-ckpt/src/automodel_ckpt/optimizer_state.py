"""Optimizer state keyed by parameter name, never by index: it survives reordering, resharding and regrouping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from automodel_ckpt.errors import StateMismatch, UnsupportedState
from automodel_ckpt.manifest import TensorRecord


def optimizer_tree(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """State and hyperparameters of an optimizer by parameter name; tensors are shared, not copied.

    Args:
        names: ``id(parameter)`` -> name.

    Raises: UnsupportedState: a parameter of the optimizer belongs to no module that is saved with it.
    """
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append({"params": [_name(p, names) for p in group["params"]], "settings": settings})
    state = {_name(p, names): dict(values) for p, values in optimizer.state.items() if isinstance(p, Tensor)}
    return {"state": {name: state[name] for name in sorted(state)}, "groups": groups}


def _name(parameter: Tensor, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise UnsupportedState(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that no saved module has. "
            'Give the module too: {"model": module, "optim": optimizer}; build the optimizer after wrapping the model.'
        )
    return names[id(parameter)]


def settings_by_parameter(groups: list[dict]) -> dict[str, dict[str, Any]]:
    """Parameter name -> the settings of its group."""
    return {name: group["settings"] for group in groups for name in group["params"]}


def group_differences(
    optimizer: Optimizer, groups: list[dict], names: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """Why the stored groups cannot be given to this optimizer; then what they train and this one does not."""
    stored = settings_by_parameter(groups)
    live = {_name(p, names): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    problems = [f"the optimizer trains {name}, the checkpoint has no state for it" for name in live.keys() - stored]
    unplaced = [f"the checkpoint trains {name}, the optimizer does not" for name in sorted(stored.keys() - live)]
    if problems:
        return sorted(problems), unplaced
    for index, group in enumerate(optimizer.param_groups):
        settings = [stored[_name(p, names)] for p in group["params"]]
        if any(repr(s) != repr(settings[0]) for s in settings):
            problems.append(f"parameters of group {index} had different settings in the checkpoint")
    return problems, unplaced


def own_part(optimizer: Optimizer, tree: dict[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """The part of a stored tree that speaks of this optimizer's parameters."""
    live = {_name(p, names) for group in optimizer.param_groups for p in group["params"]}
    groups = [{**group, "params": [name for name in group["params"] if name in live]} for group in tree["groups"]]
    return {"state": {name: values for name, values in tree["state"].items() if name in live}, "groups": groups}


def allocate_state(
    optimizer: Optimizer, names: Mapping[int, str], state: Mapping[str, Mapping], records: Mapping[str, TensorRecord]
) -> dict[Tensor, dict[str, Any]]:
    """Fresh state for every parameter, laid out as this run shards it; tensors are uninitialised.

    Args:
        state: parameter name -> key -> stored value; ``{"$tensor": name}`` stands for a tensor.
        records: stored tensors by name.

    Raises: StateMismatch: a tensor that is neither like its parameter nor whole.
    """
    parameters = {_name(p, names): (p, group) for group in optimizer.param_groups for p in group["params"]}
    fresh: dict[Tensor, dict[str, Any]] = {}
    for name, values in state.items():
        parameter, group = parameters[name]
        existing = optimizer.state.get(parameter, {})
        fresh[parameter] = {
            key: _allocate(parameter, group, key, existing.get(key), records[value["$tensor"]])
            if isinstance(value, dict) and "$tensor" in value
            else value
            for key, value in values.items()
        }
    return fresh


def _allocate(parameter: Tensor, group: dict, key: str, existing: Any, record: TensorRecord) -> Tensor:
    from automodel_ckpt.dtypes import dtype_of

    dtype = dtype_of(record.dtype)
    if isinstance(existing, Tensor) and tuple(existing.shape) == record.shape:
        return torch.empty_like(existing.detach(), dtype=dtype)
    if tuple(parameter.shape) == record.shape and record.shape:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    if len(record.chunks) > 1:
        raise StateMismatch(
            f"optimizer state {key!r} has shape {record.shape} in {len(record.chunks)} parts, its parameter "
            f"{tuple(parameter.shape)}: how to shard it is unknown. Let the optimizer make its state first (one step)."
        )
    # torch keeps 'step' on the CPU unless the optimizer is capturable or fused.
    on_device = key != "step" or group.get("capturable") or group.get("fused")
    return torch.empty(record.shape, dtype=dtype, device=parameter.device if on_device else "cpu")


def apply_groups(optimizer: Optimizer, groups: list[dict], names: Mapping[int, str]) -> None:
    """Set every group's hyperparameters to those stored for its parameters."""
    stored = settings_by_parameter(groups)
    for group in optimizer.param_groups:
        if not group["params"]:
            continue
        for key, value in stored[_name(group["params"][0], names)].items():
            if isinstance(group.get(key), Tensor):
                group[key] = torch.as_tensor(value).to(group[key])
            else:
                group[key] = value

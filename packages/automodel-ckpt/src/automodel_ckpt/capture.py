"""Turn the state that a caller names into tensors plus JSON, section by section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.layout import check_section
from automodel_ckpt.model_state import model_tensors, parameter_names
from automodel_ckpt.optimizer_state import optimizer_tree
from automodel_ckpt.tree import encode

PER_RANK = "rank"
"""The section that every rank saves and loads for itself, such as random number generators."""


@dataclass(frozen=True)
class Captured:
    """One section on this rank. ``tree`` is JSON, or None for tensors alone."""

    tensors: dict[str, Tensor]
    tree: Any = None
    aliases: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, tuple[int, ...]] | None = None
    joined: bool = False
    """Ranks may hold different parts of ``tree``, as the optimizers of pipeline stages do: all are stored."""


def capture(
    state: Mapping[str, Any],
    *,
    rank: int,
    keep: Callable[[str], bool] | None = None,
    trainable_only: bool = False,
) -> dict[str, Captured]:
    """Collect every section of ``state``; tensors are shared, not copied.

    Args:
        state: section name -> module, optimizer, object with ``state_dict``, or nested plain values.
        keep, trainable_only: which model tensors to take, see `automodel_ckpt.save`.

    Raises: ValueError: no section, or a bad name. UnsupportedState: a value that cannot be stored.
    """
    if not state:
        raise ValueError('state is empty: give {"model": module, "optim": optimizer, "train": {...}}.')
    names = all_parameter_names(state)
    sections = {}
    for section, value in state.items():
        check_section(section)
        if isinstance(value, nn.Module):
            sections[section] = _capture_module(section, value, keep, trainable_only)
        elif isinstance(value, Optimizer):
            sections[section] = replace(_captured_tree(optimizer_tree(value, names), section), joined=True)
        else:
            path = f"{rank:05d}" if section == PER_RANK else section
            sections[section] = _captured_tree(plain_state(value), path)
    return sections


def _capture_module(
    section: str, module: nn.Module, keep: Callable[[str], bool] | None, trainable_only: bool
) -> Captured:
    found = model_tensors(module, keep=keep, trainable_only=trainable_only)
    if not found.tensors:
        raise UnsupportedState(
            f"section {section!r} holds no tensor to save: every one is frozen or filtered out. "
            "Check trainable_only and filter."
        )
    tensors = dict(found.tensors)
    tree = encode(found.extra, tensors, path="_extra") if found.extra else None
    return Captured(tensors, tree, found.aliases, found.frozen)


def _captured_tree(value: Any, path: str) -> Captured:
    tensors: dict[str, Tensor] = {}
    return Captured(tensors, encode(value, tensors, path=path))


def all_parameter_names(state: Mapping[str, Any]) -> dict[int, str]:
    """``id(parameter)`` -> name over all modules of a state; with several modules, after the section's name."""
    modules = {section: value for section, value in state.items() if isinstance(value, nn.Module)}
    names: dict[int, str] = {}
    for section, module in modules.items():
        prefix = f"{section}/" if len(modules) > 1 else ""
        for key, name in parameter_names(module).items():
            names.setdefault(key, prefix + name)
    return names


def is_stateful(value: Any) -> bool:
    """Whether ``value`` saves and restores itself."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def plain_state(value: Any) -> Any:
    """``value`` with every object that has a ``state_dict`` replaced by it, in dicts of any depth."""
    if is_stateful(value):
        return plain_state(value.state_dict())
    if isinstance(value, Mapping):
        return {key: plain_state(item) for key, item in value.items()}
    return value

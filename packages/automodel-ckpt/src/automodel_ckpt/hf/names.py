"""Names in memory and on disk: Transformers 5 renames, fuses and transposes the weights of some families at load.

The conversion itself is Transformers' own. What is added here is that it runs over a few tensors at a time: a
rehearsal on the meta device shows which tensors only change their name, and which are converted together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.model_state import clean_name

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Group:
    """Tensors in memory that become tensors on disk together.

    ``disk`` maps a name on disk to its shape. ``convert`` turns the former, by memory name, into the latter.
    """

    memory: tuple[str, ...]
    disk: dict[str, tuple[int, ...]]
    convert: Convert


def disk_groups(model: Any, tensors: Mapping[str, Tensor]) -> list[Group]:
    """How the tensors of a model are written to disk, in the order of ``tensors``.

    Args:
        model: a Transformers model, or any module (then names stay as they are).
        tensors: memory name -> tensor (any device, DTensors too); only shapes and dtypes are used.
    """
    revert = _reverter(model)
    meta = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    disk = revert(meta)
    by_id = {id(tensor): name for name, tensor in meta.items()}
    renamed = {by_id[id(tensor)]: name for name, tensor in disk.items() if id(tensor) in by_id}
    groups = {name: _rename_group(name, renamed[name], meta[name]) for name in renamed}
    converted = [name for name in meta if name not in renamed]
    if converted:
        expected = {name: t for name, t in disk.items() if name not in set(renamed.values())}
        groups.update(_converted_groups(converted, expected, meta, revert))
    order = {name: i for i, name in enumerate(tensors)}
    return sorted(groups.values(), key=lambda group: order[group.memory[0]])


def _rename_group(memory: str, disk: str, tensor: Tensor) -> Group:
    return Group((memory,), {disk: tuple(tensor.shape)}, lambda given: {disk: given[memory]})


def _converted_groups(
    names: list[str], expected: dict[str, Tensor], meta: dict[str, Tensor], revert: Convert
) -> dict[str, Group]:
    """Split converted tensors by layer; all in one group where that does not give the same names and shapes."""
    by_layer: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_layer[_layer(name)].append(name)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for parts in (list(by_layer.values()), [names]):
        groups = {}
        for part in parts:
            shapes = {name: tuple(t.shape) for name, t in revert({name: meta[name] for name in part}).items()}
            groups[part[0]] = Group(tuple(part), shapes, revert)
        if {name: shape for group in groups.values() for name, shape in group.disk.items()} == wanted:
            return groups
    raise UnsupportedState(
        f"the conversion of {len(names)} tensors such as {names[0]!r} to their names on disk depends on other tensors. "
        "Use model.save_pretrained(), and report the model."
    )


def _layer(name: str) -> str:
    """The part of a name up to its first number: ``model.layers.3``."""
    parts = name.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdigit()), "")


def _reverter(model: Any) -> Convert:
    """Transformers' conversion from memory to disk for this model."""
    if not _is_transformers(model):
        return lambda tensors: dict(tensors)
    from transformers.core_model_loading import PrefixChange, revert_weight_conversion

    steps = getattr(model, "_weight_conversions", None)
    if steps is None:
        # As Transformers itself decides for a model that from_pretrained did not make.
        steps = [step for step in _conversions(model, add_legacy=False) if not isinstance(step, PrefixChange)] or None
    converted = _WithConversions(model, steps)
    return lambda tensors: revert_weight_conversion(converted, dict(tensors))


def _is_transformers(model: Any) -> bool:
    return hasattr(model, "config") and hasattr(model, "save_pretrained")


class _WithConversions:
    """A model seen with conversions that were found for it."""

    def __init__(self, model: Any, steps: list | None) -> None:
        self._model, self._weight_conversions = model, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _conversions(model: Any, **keys: Any) -> list:
    """Transformers' conversion steps of a model. It looks them up by class name, which FSDP2 changes."""
    from torch.distributed.fsdp import FSDPModule
    from transformers.conversion_mapping import get_model_conversion_mapping

    changed = [(module, type(module)) for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for module, kind in changed:
            module.__class__ = next(base for base in kind.__bases__ if base is not FSDPModule)
        return get_model_conversion_mapping(model, **keys)
    finally:
        for module, kind in changed:
            module.__class__ = kind


def match_names(model: Any, groups: Iterable[Group], available: Iterable[str]) -> dict[str, str]:
    """Expected name on disk -> the name in the files, which may spell it as the hub, an older release, or memory does.

    A file's tensor that matches no expected name, or one that another tensor matches already, is left out.
    """
    names = set(available)
    expected = [name for group in groups for name in group.disk]
    found = {name: name for name in expected if name in names}
    rest = names - found.keys()
    if not rest or len(found) == len(expected):
        return found
    canonical = _canonical_name(model)
    wanted = {canonical(name): name for name in expected if name not in found}
    for name in sorted(rest):
        meant = wanted.get(canonical(name))
        if meant is not None and meant not in found:
            found[meant] = name
    return found


def _canonical_name(model: Any) -> Callable[[str], str]:
    """Transformers' renaming of a name on disk as it loads, fusing left out: every spelling gives the same name."""
    if not _is_transformers(model):
        return lambda name: name
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = _conversions(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    live = {clean_name(name): tensor for name, tensor in model.state_dict().items()}
    prefix = model.base_model_prefix

    def canonical(name: str) -> str:
        renamed, fused = rename_source_key(name, renamings, converters, prefix, live)
        if fused is None:
            return renamed
        # One of several tensors that become one: only its own name tells them apart.
        return rename_source_key(name, renamings, [])[0].removeprefix(f"{prefix}.")

    return canonical

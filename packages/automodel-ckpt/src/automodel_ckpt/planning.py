"""Who writes what: each part of each tensor exactly once, spread evenly over the ranks that hold it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, TypedDict

import xxhash
from torch import Tensor

from automodel_ckpt.boxes import Box, local_part
from automodel_ckpt.capture import PER_RANK, Captured
from automodel_ckpt.dtypes import ITEM_BYTES, dtype_name
from automodel_ckpt.errors import SaveFailed


class Plan(TypedDict):
    """What each rank writes; plain JSON."""

    tensors: dict[str, list[list[str]]]
    """Section -> per rank, names of tensors."""
    trees: dict[str, list[int]]
    """Section -> ranks that write a tree: rank 0, every rank of per-rank state, or one for each part."""


def offer(sections: dict[str, Captured], step: int, *, rank: int) -> dict[str, Any]:
    """What this rank could write, as JSON: ``[name, dtype, global shape, offset, local shape]`` per tensor."""
    return {
        "step": step,
        "sections": {
            name: {
                "tensors": [_describe(key, tensor) for key, tensor in section.tensors.items()],
                # Each rank has its own tree there; elsewhere rank 0 writes the one that all agree on.
                "tree": None if name == PER_RANK else tree_digest(section.tree),
                "joined": section.joined,
            }
            for name, section in sections.items()
        },
    }


def tree_digest(tree: Any) -> str:
    """A digest of JSON state, to compare between ranks."""
    return xxhash.xxh3_64_hexdigest(json.dumps(tree, sort_keys=True).encode())


def _describe(name: str, tensor: Tensor) -> list:
    box, _ = local_part(tensor)
    return [name, dtype_name(tensor.dtype), list(tensor.shape), list(box.offset), list(box.shape)]


def assign(offers: list[dict[str, Any]]) -> Plan:
    """Choose the writer of every part: of the ranks that hold it, the one with the least to do.

    Raises: SaveFailed: ranks disagree on the step, the sections, or a tensor's shape or dtype.
    """
    _check_agreement(offers)
    plan: Plan = {"tensors": {}, "trees": {name: _tree_writers(name, offers) for name in offers[0]["sections"]}}
    load = [0] * len(offers)
    for section in offers[0]["sections"]:
        holders: dict[tuple[str, Box], list[int]] = defaultdict(list)
        sizes: dict[tuple[str, Box], int] = {}
        for rank, given in enumerate(offers):
            for name, dtype, _, offset, shape in given["sections"][section]["tensors"]:
                box = Box(tuple(offset), tuple(shape))
                holders[name, box].append(rank)
                sizes[name, box] = box.numel * ITEM_BYTES[dtype]
        plan["tensors"][section] = _spread(holders, sizes, load)
    return plan


def _tree_writers(section: str, offers: list[dict[str, Any]]) -> list[int]:
    if section == PER_RANK:
        return list(range(len(offers)))
    first: dict[str, int] = {}
    for rank, given in enumerate(offers):
        first.setdefault(given["sections"][section]["tree"], rank)
    return sorted(first.values())


def _spread(holders: dict[tuple[str, Box], list[int]], sizes: dict[tuple[str, Box], int], load: list[int]) -> list:
    chosen: list[list[str]] = [[] for _ in load]
    covered = {name for (name, box) in holders if box.numel}
    for name, box in sorted(holders, key=lambda part: (-sizes[part], part[0], part[1])):
        if not box.numel and name in covered:
            continue  # an empty share of a tensor that others hold
        covered.add(name)
        rank = min(holders[name, box], key=lambda r: (load[r], r))
        load[rank] += sizes[name, box]
        chosen[rank].append(name)
    return [sorted(names) for names in chosen]


def _check_agreement(offers: list[dict[str, Any]]) -> None:
    steps = [given["step"] for given in offers]
    if len(set(steps)) > 1:
        raise SaveFailed(f"ranks save different steps {steps}: all must give the same. Call save at the same step.")
    names = [sorted(given["sections"]) for given in offers]
    if any(n != names[0] for n in names):
        raise SaveFailed(f"ranks save different sections {names}: all must give the same keys.")
    for section in names[0]:
        given_trees = {given["sections"][section]["tree"] for given in offers}
        if len(given_trees) > 1 and not offers[0]["sections"][section]["joined"]:
            raise SaveFailed(
                f"section {section!r} differs between ranks, and only one copy of it is stored. "
                f"Put what is different on each rank under the key {PER_RANK!r}."
            )
    described: dict[tuple[str, str], tuple[int, list]] = {}
    for rank, given in enumerate(offers):
        for section, content in given["sections"].items():
            for name, dtype, shape, *_ in content["tensors"]:
                first, seen = described.setdefault((section, name), (rank, [dtype, shape]))
                if seen != [dtype, shape]:
                    raise SaveFailed(
                        f"{section} {name!r} is {seen} on rank {first} and {[dtype, shape]} on rank {rank}."
                    )

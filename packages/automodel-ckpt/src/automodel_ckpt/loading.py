"""Load a checkpoint into live objects, whatever the number of ranks and the sharding then and today."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from automodel_ckpt import layout
from automodel_ckpt.boxes import local_part
from automodel_ckpt.capture import PER_RANK
from automodel_ckpt.coordination import Coordinator, make_coordinator
from automodel_ckpt.directory import Directory, check_sizes, is_complete, locate, read_manifest, split, steps
from automodel_ckpt.errors import CorruptCheckpoint, LoadFailed, StateMismatch
from automodel_ckpt.manifest import Manifest
from automodel_ckpt.reader import Target, read_file, targets_for
from automodel_ckpt.restore import Restore, plan_restore
from automodel_ckpt.section_tree import read_section_tree

logger = logging.getLogger(__name__)
_MAX_LISTED = 12


@dataclass(frozen=True)
class LoadReport:
    """What was loaded."""

    path: Path
    step: int
    metrics: dict[str, float]
    info: dict[str, Any]
    missing: tuple[str, ...]
    """Wanted here, absent from the checkpoint; empty unless ``strict=False``."""
    unexpected: tuple[str, ...]
    """In the checkpoint, with no place here."""
    resharded: int
    """Tensors whose parts on disk are not this rank's parts."""
    world_size: int
    """Ranks that wrote the checkpoint."""
    notes: tuple[str, ...]
    """What a reader of the log should know, such as random state of ranks that is not there."""
    bytes_read: int
    seconds: float

    @property
    def gib_per_s(self) -> float:
        return self.bytes_read / 2**30 / max(self.seconds, 1e-9)


def load(
    path: str | os.PathLike | Directory,
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    verify: str = "hash",
    rename: Callable[[str], str] | None = None,
    cast: bool = False,
    fallback: bool = False,
    process_group: Any = None,
    deadline_s: float = 600.0,
    threads: int = 2,
) -> LoadReport:
    """Restore modules, optimizers and other state in place, bit for bit; called by every rank.

    Keys, shapes, dtypes, file sizes and the cover of every tensor are checked before anything is touched.

    Args:
        path: a checkpoint, or the directory that holds several: then the newest complete one.
        state: as for `automodel_ckpt.save`; sections that the checkpoint has and ``state`` lacks are skipped.
            Values are restored in the order of this mapping: put ``"rank"`` (random state) last.
        strict: names must agree exactly. False reports differences of names; other shapes are refused all the same.
        verify: ``"hash"`` checks every block that is read, ``"size"`` sizes only, ``"none"`` the manifest only.
        rename: live name -> stored name, for model tensors.
        cast: convert stored model tensors to the live dtype; otherwise another dtype is refused.
        fallback: when the checkpoint is corrupt, take the next older complete one instead.
        process_group, deadline_s: ranks that load together, see `automodel_ckpt.save`.
        threads: per rank, blocks read at a time.

    Returns: `LoadReport`.
    Raises: CheckpointNotFound, CorruptCheckpoint, StateMismatch, UnsafeFile: on every rank. After CorruptCheckpoint
        from a block the objects are partly overwritten: load another checkpoint before using them.
    """
    if verify not in ("hash", "size", "none"):
        raise ValueError(f"verify={verify!r}: allowed are 'hash', 'size' and 'none'.")
    coordinator = make_coordinator(process_group, deadline_s=deadline_s)
    directory, name = _agree_on_path(path, coordinator)
    load_one = partial(_load_one, strict=strict, verify=verify, rename=rename, cast=cast, threads=threads)
    while True:
        try:
            return load_one(directory, name, state, coordinator)
        except CorruptCheckpoint as error:
            older = _older(directory, name) if fallback else None
            if older is None:
                raise
            logger.warning("%s; loading %s instead", error, older)
            name = older


def _agree_on_path(path: str | os.PathLike | Directory, coordinator: Coordinator) -> tuple[Any, str]:
    """Rank 0 chooses, so that ranks that see a save at different moments load the same step."""
    found: list = []

    def choose() -> str | None:
        if coordinator.rank:
            return None
        found.extend(locate(path))
        return found[1]

    name = coordinator.ballot(f"load from {path}", choose, lambda names: names[0], failure=LoadFailed)
    return (found[0] if found else split(path)[0]), name


def _older(directory: Directory, name: str) -> str | None:
    current = layout.step_of(name)
    older = [step for step in steps(directory) if current is not None and step < current]
    return next((n for n in map(layout.step_name, reversed(older)) if is_complete(directory, n)), None)


def _load_one(
    directory: Any,
    name: str,
    state: Mapping[str, Any],
    coordinator: Coordinator,
    *,
    strict: bool,
    verify: str,
    rename: Callable[[str], str] | None,
    cast: bool,
    threads: int,
) -> LoadReport:
    began = time.monotonic()
    title = f"load of {directory.path(name)}"
    notes: list[str] = []
    plans: dict[str, Restore] = {}
    manifests: list[Manifest] = []

    def check() -> dict[str, list[str]]:
        manifest = read_manifest(directory, name)
        if verify != "none":
            check_sizes(directory, name, manifest)
        manifests.append(manifest)
        plans.update(_plan(directory, name, manifest, state, coordinator.rank, notes, rename, cast))
        return _problems(plans)

    def read() -> int:
        with directory.reading(name):
            total = _read(directory, name, manifests[0], plans, hashed=verify == "hash", threads=threads)
        for section in state:
            if section in plans:
                plans[section].finish()
        return total

    found = coordinator.ballot(title, check, _join_problems, failure=LoadFailed)
    _refuse_differences(found, strict, str(directory.path(name)))
    total = coordinator.ballot(title, read, sum, failure=LoadFailed)
    manifest = manifests[0]
    return LoadReport(
        path=directory.path(name),
        step=manifest.step,
        metrics=manifest.metrics,
        info=manifest.info,
        missing=tuple(m for plan in plans.values() for m in plan.missing),
        unexpected=tuple(found["unexpected"]),
        resharded=_count_resharded(manifest, plans),
        world_size=manifest.world_size,
        notes=tuple(notes),
        bytes_read=total,
        seconds=time.monotonic() - began,
    )


def _plan(
    directory: Directory,
    name: str,
    manifest: Manifest,
    state: Mapping[str, Any],
    rank: int,
    notes: list[str],
    rename: Callable[[str], str] | None,
    cast: bool,
) -> dict[str, Restore]:
    plans = {}
    for section, value in state.items():
        stored = manifest.sections.get(section)
        if stored is None:
            have = ", ".join(sorted(manifest.sections))
            plans[section] = Restore(missing=[f"section {section!r} (the checkpoint has {have})"])
            continue
        if section == PER_RANK and str(rank) not in stored.tree:
            notes.append(
                f"state of rank {rank} is not in the checkpoint, which {manifest.world_size} ranks wrote; "
                "this rank keeps its own"
            )
            continue
        tree = read_section_tree(directory, name, manifest, section, rank)
        plans[section] = plan_restore(section, value, stored, tree, state, rename=rename, cast=cast)
    return plans


def _problems(plans: dict[str, Restore]) -> dict[str, list[str]]:
    """What is in the way on this rank, as JSON. Only what has no place on *any* rank is left of the last two."""
    return {
        "differences": [problem for plan in plans.values() for problem in plan.differences],
        "missing": [name for plan in plans.values() for name in plan.missing],
        "unplaced": [problem for plan in plans.values() for problem in plan.unplaced],
        "unexpected": [name for plan in plans.values() for name in plan.unexpected],
    }


def _join_problems(found: list[dict[str, list[str]]]) -> dict[str, list[str]]:
    """Ranks of a pipeline hold parts of the model: each lacks what others have."""
    joined: dict[str, list[str]] = {}
    for kind in ("differences", "missing"):
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, own in enumerate(found):
            for problem in own[kind]:
                holders[problem].append(rank)
        joined[kind] = [p if len(held) == len(found) else f"rank {held[0]}: {p}" for p, held in holders.items()]
    for kind in ("unplaced", "unexpected"):
        everywhere = set(found[0][kind]).intersection(*(own[kind] for own in found[1:]))
        joined[kind] = [problem for problem in found[0][kind] if problem in everywhere]
    return joined


def _refuse_differences(found: dict[str, list[str]], strict: bool, where: str) -> None:
    problems = found["differences"] + found["unplaced"]
    if strict:
        problems += [f"{name}: absent from the checkpoint" for name in found["missing"]]
        problems += [f"{name}: in the checkpoint, not here" for name in found["unexpected"]]
    if problems:
        listed = "; ".join(problems[:_MAX_LISTED])
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise StateMismatch(
            f"{where} is not a checkpoint of this model and optimizer: {listed}{more}. "
            "Give the objects that it was saved from, or another checkpoint.",
            differences=tuple(problems),
        )


def _read(
    directory: Any, name: str, manifest: Manifest, plans: dict[str, Restore], *, hashed: bool, threads: int
) -> int:
    wanted: dict[str, list[Target]] = defaultdict(list)
    for section, plan in plans.items():
        for key, tensors in plan.targets.items():
            for tensor in tensors:
                box, local = local_part(tensor)
                for file, targets in targets_for(key, manifest.sections[section].tensors[key], box, local).items():
                    wanted[file] += targets
    return sum(
        read_file(directory, f"{name}/{file}", manifest.files[file], targets, hashed=hashed, threads=threads)
        for file, targets in sorted(wanted.items())
    )


def _count_resharded(manifest: Manifest, plans: dict[str, Restore]) -> int:
    count = 0
    for section, plan in plans.items():
        for key, tensors in plan.targets.items():
            boxes = {chunk.box for chunk in manifest.sections[section].tensors[key].chunks}
            count += any(local_part(tensor)[0] not in boxes for tensor in tensors)
    return count

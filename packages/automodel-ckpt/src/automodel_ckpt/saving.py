"""Save a checkpoint so that it is either complete or not there, whatever happens meanwhile."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automodel_ckpt import layout
from automodel_ckpt.boxes import Box, local_part
from automodel_ckpt.capture import PER_RANK, Captured, capture
from automodel_ckpt.coordination import Coordinator, make_coordinator
from automodel_ckpt.directory import Directory, is_complete, open_directory
from automodel_ckpt.errors import AlreadyExists
from automodel_ckpt.manifest import Chunk, FileRecord, Manifest, Section, TensorRecord, check_tiling
from automodel_ckpt.planning import Plan, assign, offer
from automodel_ckpt.retention import Keep, collect_garbage
from automodel_ckpt.writer import write_bytes, write_tensors

logger = logging.getLogger(__name__)


def save(
    root: str | os.PathLike | Directory,
    state: Mapping[str, Any],
    *,
    step: int,
    keep: Keep | None = None,
    metrics: Mapping[str, float] | None = None,
    info: Mapping[str, Any] | None = None,
    trainable_only: bool = False,
    filter: Callable[[str], bool] | None = None,
    process_group: Any = None,
    deadline_s: float = 600.0,
    threads: int = 2,
    takeover: bool = False,
) -> Path:
    """Write ``root/step-<step>`` and return its path; called by every rank, the same on every rank.

    The directory appears under its name by one rename, after every byte of it is durable. Whatever ends the
    process before that leaves the earlier checkpoints as they were.

    Args:
        root: directory of a run, or a ready `Directory`.
        state: section name -> ``nn.Module`` (plain, DDP, FSDP2, DTensor), optimizer, object with ``state_dict``,
            or nested dicts of plain values, tensors and such objects. Section ``"rank"`` is kept per rank; of the
            others that are not tensors rank 0's is written, and ranks that differ are an error.
        step: optimizer step; names the directory.
        keep: what to delete afterwards; default `Keep` (the last 2). ``Keep(last=None)`` deletes nothing.
        metrics: finite numbers to choose the best checkpoint by.
        info: plain JSON to store for people and other tools; never used for loading.
        trainable_only: leave out parameters that need no gradient (LoRA); their names and shapes are recorded, and
            `load` requires the same.
        filter: leave out model tensors for whose name it is false, likewise.
        process_group: ranks that save together; default all. Never used for collectives, only its store.
        deadline_s: seconds to wait for the slowest rank before every rank raises.
        threads: per rank, blocks written at a time.
        takeover: write although another machine's process seems to hold the directory.

    Raises: SaveFailed: on every rank, when any rank failed or is missing. AlreadyExists: the step is there.
        LeaseHeld: another run writes here. UnsupportedState: a value that cannot be stored without pickle.
    """
    if type(step) is not int or not 0 <= step < 10**18:
        raise ValueError(f"step={step!r}: allowed are integers from 0 to 10**18 - 1. Give the optimizer step.")
    coordinator = make_coordinator(process_group, deadline_s=deadline_s)
    sections: dict[str, Captured] = {}

    def collect() -> dict:
        sections.update(capture(state, rank=coordinator.rank, keep=filter, trainable_only=trainable_only))
        return offer(sections, step, rank=coordinator.rank)

    plan = coordinator.ballot("plan of a save", collect, assign)
    return save_captured(
        root,
        sections,
        plan,
        coordinator,
        step=step,
        keep=keep or Keep(),
        metrics=check_metrics(metrics or {}),
        info=dict(info or {}),
        threads=threads,
        takeover=takeover,
    )


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as floats; those that are not finite are left out, so that they are never the best."""
    checked = {name: float(value) for name, value in metrics.items()}
    for name, value in checked.items():
        if not math.isfinite(value):
            logger.warning("metric %s is %s and is not stored", name, value)
    return {name: value for name, value in checked.items() if math.isfinite(value)}


def save_captured(
    root: str | os.PathLike | Directory,
    sections: dict[str, Captured],
    plan: Plan,
    coordinator: Coordinator,
    *,
    step: int,
    keep: Keep,
    metrics: dict[str, float],
    info: dict[str, Any],
    threads: int,
    takeover: bool = False,
) -> Path:
    """Write captured sections by a plan: stage, write, publish. Collective like `save`."""
    directory = open_directory(root)
    title = f"save of step {step} in {directory}"
    lead = coordinator.rank == 0
    name = layout.step_name(step)

    staging = coordinator.ballot(
        title, lambda: _prepare(directory, step, plan, takeover) if lead else None, lambda answers: answers[0]
    )
    try:
        published = coordinator.ballot(
            title,
            lambda: _write_share(directory, staging, sections, plan, coordinator, threads),
            lambda shares: _publish(directory, staging, name, _manifest(shares, step, sections, metrics, info)),
        )
    except Exception:
        if lead:
            _clean_up(directory, staging)
        raise
    if lead:
        _retire(directory, keep, published)
    return directory.path(name)


def _prepare(directory: Directory, step: int, plan: Plan, takeover: bool) -> str:
    """On rank 0: take the lease, clear what dead runs left, and make the staging directory."""
    directory.acquire(takeover=takeover)
    directory.sweep()
    name = layout.step_name(step)
    if is_complete(directory, name):
        raise AlreadyExists(
            f"{directory.path(name)} is a complete checkpoint already; a step is saved once. "
            "Resume from it, delete it, or save into another directory."
        )
    return directory.stage(step, [section for section, writers in plan["tensors"].items() if any(writers)])


def _write_share(
    directory: Directory,
    staging: str,
    sections: dict[str, Captured],
    plan: Plan,
    coordinator: Coordinator,
    threads: int,
) -> dict[str, Any]:
    """Write this rank's files; report them as JSON."""
    share: dict[str, Any] = {"files": {}, "sections": {}}
    for section_name, section in sections.items():
        parts, record = _write_section(directory, staging, section_name, section, plan, coordinator, threads)
        share["sections"][section_name] = parts
        share["files"].update(record)
    share["meta"] = {
        name: {
            "aliases": section.aliases,
            "frozen": None if section.frozen is None else {k: list(v) for k, v in section.frozen.items()},
        }
        for name, section in sections.items()
    }
    return share


def _write_section(
    directory: Directory,
    staging: str,
    name: str,
    section: Captured,
    plan: Plan,
    coordinator: Coordinator,
    threads: int,
) -> tuple[dict[str, Any], dict[str, list]]:
    rank = coordinator.rank
    files: dict[str, list] = {}
    parts: dict[str, Any] = {"tensors": [], "tree": {}}
    shares = plan["tensors"][name]
    mine = shares[rank]
    if mine:
        writers = [r for r, names in enumerate(shares) if names]
        file = layout.shard_name(name, writers.index(rank), len(writers))
        local = {key: local_part(section.tensors[key]) for key in mine}
        record, entries = write_tensors(
            directory,
            f"{staging}/{file}",
            {key: data for key, (_, data) in local.items()},
            threads=1 if directory.sequential else threads,
        )
        files[file] = [record.bytes, record.blocks]
        for entry in entries:
            box = local[entry.name][0]
            shape = list(section.tensors[entry.name].shape)
            parts["tensors"].append([entry.name, entry.dtype, shape, file, entry.start, box.offset, box.shape])
    if section.tree is not None and rank in plan["trees"][name]:
        one = plan["trees"][name] == [0] and name != PER_RANK
        key, file = ("", f"{name}.json") if one else (str(rank), f"{name}-{rank:05d}.json")
        record = write_bytes(directory, f"{staging}/{file}", json.dumps(section.tree).encode())
        files[file] = [record.bytes, record.blocks]
        parts["tree"][key] = file
    return parts, files


def _manifest(
    shares: list[dict[str, Any]],
    step: int,
    own: dict[str, Captured],
    metrics: dict[str, float],
    info: dict[str, Any],
) -> Manifest:
    """Join what the ranks wrote."""
    files = {
        name: FileRecord(size, tuple(blocks)) for share in shares for name, (size, blocks) in share["files"].items()
    }
    sections = {name: _join_section(name, shares) for name in own}
    return Manifest(
        step=step, files=files, sections=sections, metrics=metrics, world_size=len(shares), info=_environment(info)
    )


def _join_section(name: str, shares: list[dict[str, Any]]) -> Section:
    chunks: dict[str, list[Chunk]] = {}
    described: dict[str, tuple[str, tuple[int, ...]]] = {}
    tree: dict[str, str] = {}
    for share in shares:
        part = share["sections"][name]
        tree.update(part["tree"])
        for key, dtype, shape, file, start, offset, size in part["tensors"]:
            described[key] = (dtype, tuple(shape))
            chunks.setdefault(key, []).append(Chunk(file, start, Box(tuple(offset), tuple(size))))
    tensors = {key: TensorRecord(*described[key], tuple(chunks[key])) for key in sorted(chunks)}
    # Pipeline stages hold different parameters: what a section has is what any rank has.
    metas = [share["meta"][name] for share in shares]
    aliases = {alias: source for meta in metas for alias, source in meta["aliases"].items()}
    frozen = {key: tuple(shape) for meta in metas for key, shape in (meta["frozen"] or {}).items()}
    return Section(tensors, tree, aliases, None if metas[0]["frozen"] is None else frozen)


def _environment(info: dict[str, Any]) -> dict[str, Any]:
    import torch

    from automodel_ckpt.__about__ import __version__

    own = {
        "automodel_ckpt": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "host": platform.node(),
        "unix_time": int(time.time()),
        "save_id": secrets.token_hex(8),
    }
    return {**own, "user": info}


def _publish(directory: Directory, staging: str, name: str, manifest: Manifest) -> int:
    """On rank 0, after every rank has written: check, complete and rename. This is the commit."""
    check_tiling(manifest, staging)
    directory.publish(staging, name, manifest.to_bytes(), set(manifest.files))
    return manifest.step


def _retire(directory: Directory, keep: Keep, published: int) -> None:
    """Write the hint and delete what is not kept; the save is done, and a failure here does not undo it."""
    try:
        directory.hint(layout.LATEST, published)
        collect_garbage(directory, keep)
    except OSError as error:
        logger.warning("tidying %s after the save of step %d failed: %s", directory, published, error)


def _clean_up(directory: Directory, staging: str) -> None:
    try:
        directory.abandon(staging)
    except OSError as error:
        logger.warning("the unfinished save %s could not be deleted: %s", directory.path(staging), error)

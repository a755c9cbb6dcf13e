"""The JSON part of a section: one file, one per rank, or parts that are joined."""

from __future__ import annotations

import json
from typing import Any

from automodel_ckpt.capture import PER_RANK
from automodel_ckpt.directory import Directory
from automodel_ckpt.errors import CorruptCheckpoint
from automodel_ckpt.manifest import Manifest
from automodel_ckpt.writer import record_of

_MAX_TREE_BYTES = 1 << 31


def read_section_tree(directory: Directory, name: str, manifest: Manifest, section: str, rank: int) -> Any:
    """The tree of a section, of per-rank state that of ``rank``; None where there is none.

    Parts by several ranks are those of optimizers of pipeline stages, each with its own parameters: they are joined.

    Raises: CorruptCheckpoint: a file is not what was written.
    """
    files = manifest.sections[section].tree
    if section == PER_RANK or "" in files:
        file = files.get(str(rank) if section == PER_RANK else "")
        return None if file is None else _read(directory, name, manifest, file)
    parts = [_read(directory, name, manifest, files[key]) for key in sorted(files, key=int)]
    return join_optimizer_trees(parts) if parts else None


def join_optimizer_trees(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One optimizer's tree from those of the stages; groups with the same settings become one."""
    state: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for part in parts:
        state.update(part["state"])
        for group in part["groups"]:
            key = json.dumps(group["settings"], sort_keys=True)
            joined = groups.setdefault(key, {"params": [], "settings": group["settings"]})
            joined["params"] += [name for name in group["params"] if name not in joined["params"]]
    return {"state": state, "groups": list(groups.values())}


def _read(directory: Directory, name: str, manifest: Manifest, file: str) -> Any:
    data = directory.read(f"{name}/{file}", limit=_MAX_TREE_BYTES)
    if record_of(data) != manifest.files[file]:
        raise CorruptCheckpoint(
            f"{directory.path(name)}: file {file!r} is not what was written. Use an older checkpoint.", file=file
        )
    return json.loads(data)

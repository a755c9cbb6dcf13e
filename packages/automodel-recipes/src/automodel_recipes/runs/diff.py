"""Compare two runs: what was asked for, with what versions, and what came out."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_recipes.runs.folder import RunFolder

_PLACES = ("checkpoint.checkpoint_dir",)
_CLOCKED = ("time", "step_time_s", "tokens_per_s", "label_tokens_per_s", "mfu_percent", "data_wait_percent", "eta_s")
_MACHINE = ("peak_memory_gib", "host_memory_gib")
_EXACT_KINDS = ("train", "val", "exact_match")


@dataclass
class Difference:
    """Everything in which two runs differ; each list holds ``(what, one, other)``."""

    config: list[tuple[str, Any, Any]] = field(default_factory=list)
    environment: list[tuple[str, Any, Any]] = field(default_factory=list)
    results: list[tuple[str, Any, Any]] = field(default_factory=list)
    exact: list[str] | None = None
    """With ``exact``: in words, the first row and the files that are not the same; empty where all are."""

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        as_rows = {
            name: [{"what": what, "one": one, "other": other} for what, one, other in getattr(self, name)]
            for name in ("config", "environment", "results")
        }
        return {**as_rows, "exact": self.exact}


def compare(one: RunFolder, other: RunFolder, *, exact: bool = False) -> Difference:
    """Compare configurations leaf by leaf, versions, devices, and the last and best values of every metric.

    Args:
        exact: also hold every logged number that does not depend on the clock or the machine, every generated answer
            and the finished weights against each other, bit by bit.
    """
    found = Difference(config=_leaves_that_differ(one.record["config"], other.record["config"]))
    for key in ("versions", "python", "platform", "device", "device_name", "world_size", "data"):
        found.environment += _leaves_that_differ({key: one.record.get(key)}, {key: other.record.get(key)})
    for name in sorted({*one.series, *other.series}):
        if name.rpartition("/")[2] in ("loss", "token_accuracy", "accuracy", "exact_match", "tokens_per_s"):
            values = one.last(name), other.last(name)
            if values[0] != values[1]:
                found.results.append((name, *values))
    if exact:
        found.exact = [*_rows_that_differ(one, other), *_samples_that_differ(one, other), *_weights_differ(one, other)]
    return found


def _leaves_that_differ(one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    mine, theirs = dict(leaves(one)), dict(leaves(other))
    return [
        (path, mine.get(path), theirs.get(path))
        for path in sorted({*mine, *theirs})
        if path not in _PLACES and mine.get(path) != theirs.get(path)
    ]


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """``a.b.0`` -> value for nested dicts and lists; an empty one is a leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        return [(path, value)]
    return [leaf for key, item in items for leaf in leaves(item, f"{path}.{key}" if path else str(key))]


def _rows_that_differ(one: RunFolder, other: RunFolder) -> list[str]:
    mine, theirs = _comparable(one), _comparable(other)
    for key in sorted({*mine, *theirs}):
        kind, name, step = key
        what = f"{kind} row{f' of {name}' if name else ''} at step {step}"
        if key not in mine or key not in theirs:
            return [f"{what}: only in {one.path if key in mine else other.path}"]
        unequal = [k for k in sorted({*mine[key], *theirs[key]}) if mine[key].get(k) != theirs[key].get(k)]
        if unequal:
            first = unequal[0]
            return [f"{what}: {first} {mine[key].get(first)} against {theirs[key].get(first)}"]
    return []


def _comparable(run: RunFolder) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The last row of each kind, set and step without what the clock and the machine decide."""
    return {
        (row["kind"], str(row.get("name", row.get("moment", ""))), row["step"]): {
            key: value for key, value in row.items() if key not in _CLOCKED + _MACHINE
        }
        for row in run.all_rows
        if row.get("kind") in _EXACT_KINDS
    }


def _samples_that_differ(one: RunFolder, other: RunFolder) -> list[str]:
    mine, theirs = ([{k: v for k, v in row.items() if k != "time"} for row in run.samples] for run in (one, other))
    if mine == theirs:
        return []
    first = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
    return [f"samples.jsonl: line {first + 1} differs ({len(mine)} and {len(theirs)} samples)"]


def _weights_differ(one: RunFolder, other: RunFolder) -> list[str]:
    mine, theirs = _digests(one.path / "final"), _digests(other.path / "final")
    return [
        f"final/{name}: " + ("other bytes" if name in mine and name in theirs else "only in one of the two")
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: _digest(file) for file in folder.glob("*.safetensors")} if folder.is_dir() else {}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

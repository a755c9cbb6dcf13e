"""One run's directory as its files describe it; nothing here needs torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from automodel_recipes.errors import UnusableInputError
from automodel_recipes.loggers.jsonl import read_jsonl

FORMAT = 1
"""The version of ``run.json`` that is read here, and written by ``automodel_recipes.run_json``."""

_DESCRIPTION = ("config", "versions", "status")


@dataclass(frozen=True)
class RunFolder:
    """A run: its record, its rows, its samples, its checkpoints."""

    path: Path
    record: dict[str, Any]

    @cached_property
    def all_rows(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl`` in the order of writing; empty before the first."""
        file = self.path / "metrics.jsonl"
        return read_jsonl(file) if file.is_file() else []

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Rows of a kind (``train``, ``val``, ``warning``, ...)."""
        return [row for row in self.all_rows if row.get("kind") == kind]

    @cached_property
    def series(self) -> dict[str, dict[int, float]]:
        """Every number by its name in trackers (``train/loss``, ``val/perplexity``), then by step.

        A step that was run again after a resume counts as it was run last.
        """
        found: dict[str, dict[int, float]] = {}
        for row in self.all_rows:
            step, kind = row.get("step"), row.get("kind")
            if not isinstance(step, int) or kind not in ("train", "val", "exact_match"):
                continue
            name = row.get("name", "val")
            prefix = f"val_{name}" if kind == "val" and name != "val" else str(kind)
            for key, value in row.items():
                if key not in ("step", "time", "epoch") and _is_number(value):
                    found.setdefault(f"{prefix}/{key}", {})[step] = float(value)
        return found

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Generated answers, in the order of writing."""
        file = self.path / "samples.jsonl"
        return read_jsonl(file) if file.is_file() else []

    def checkpoints(self) -> Iterator[dict[str, Any]]:
        """Name, size, metrics and time of each complete checkpoint; of a damaged one the reason."""
        from automodel_ckpt import CheckpointError
        from automodel_ckpt.directory import check_sizes, open_directory, read_manifest

        directory = open_directory(self.path)
        for folder in sorted(self.path.glob("step-*")):
            try:
                manifest = read_manifest(directory, folder.name)
                check_sizes(directory, folder.name, manifest)
            except (CheckpointError, OSError) as error:
                yield {"name": folder.name, "problem": str(error)}
                continue
            size = sum(file.bytes for file in manifest.files.values())
            yield {"name": folder.name, "bytes": size, "metrics": manifest.metrics, "problem": None}

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return max((row["step"] for row in self.rows("train") if isinstance(row.get("step"), int)), default=0)

    def last(self, name: str) -> float | None:
        """The newest value of a series."""
        values = self.series.get(name)
        return values[max(values)] if values else None

    def best(self, name: str) -> float | None:
        """The lowest value of a series."""
        values = self.series.get(name)
        return min(values.values()) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def open_run(path: Path) -> RunFolder:
    """Read a run's record.

    Raises: UnusableInputError: no run there, a record that cannot be read, or one of another version.
    """
    file = path / "run.json"
    if not file.is_file():
        raise UnusableInputError(
            f"{path} holds no run.json. Give a run's directory, such as one that `automodel-recipes runs ls` lists."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UnusableInputError(f"{file} cannot be read: {error}. Restore it, or leave this run out.") from error
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT:
        raise UnusableInputError(
            f"{file} has format {version!r} and this version of automodel-recipes reads format {FORMAT}. "
            + (
                "Upgrade automodel-recipes."
                if isinstance(version, int) and version > FORMAT
                else "It is no run of ours."
            )
        )
    absent = [key for key in _DESCRIPTION if key not in record]
    if absent:
        raise UnusableInputError(f"{file} lacks {', '.join(absent)}: it is damaged. Leave this run out.")
    return RunFolder(path, record)


def find_runs(root: Path) -> tuple[list[RunFolder], list[str]]:
    """Runs at ``root`` and up to three levels below it, and what is wrong with those that cannot be read."""
    runs, problems = [], []
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for file in sorted(root.glob(f"{depth}run.json")):
            try:
                runs.append(open_run(file.parent))
            except UnusableInputError as error:
                problems.append(str(error))
    return runs, problems

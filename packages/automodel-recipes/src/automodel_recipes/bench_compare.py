"""Rows of benchmarks on disk, and whether a new one is slower than the one before."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_recipes.errors import RecipeError, UnusableInputError

_ALIKE = ("name", "device_name", "world_size", "threads", "synthetic")
"""What two rows must share to be compared."""


class SlowerError(RecipeError):
    """A benchmark fell behind its earlier row."""


@dataclass(frozen=True)
class Comparison:
    """A row beside its earlier one; ratios above 1 are better for speed, below 1 for memory."""

    speed: float
    memory: float | None
    earlier: dict[str, Any]

    def line(self) -> str:
        """For the screen."""
        memory = "" if self.memory is None else f", memory x {self.memory:.3f}"
        return f"speed x {self.speed:.3f}{memory} of {self.earlier['date']} ({self.earlier['tokens_per_s']} tokens/s)"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file.

    Raises: UnusableInputError: no file, or other contents.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UnusableInputError(f"{path}: {error.strerror}. Give a file that `bench --output` wrote.") from None
    except json.JSONDecodeError as error:
        raise UnusableInputError(f"{path} is not the JSON lines of `bench --output`: {error}.") from None
    if not all(isinstance(row, dict) and "status" in row for row in rows):
        raise UnusableInputError(f"{path} holds lines that are no rows of `bench --output`. Give another file.")
    return rows


def compare(row: dict[str, Any], path: Path) -> Comparison:
    """A row beside the last one in ``path`` that was measured alike.

    Raises: UnusableInputError: there is none.
    """
    alike = [old for old in read_rows(path) if old["status"] == "ok" and all(old.get(k) == row.get(k) for k in _ALIKE)]
    if not alike:
        wanted = ", ".join(f"{key}={row.get(key)!r}" for key in _ALIKE)
        raise UnusableInputError(f"{path} has no row with {wanted} to compare with. Measure one there first.")
    old = alike[-1]
    ours, theirs = row["memory"].get("measured_bytes"), old["memory"].get("measured_bytes")
    return Comparison(row["tokens_per_s"] / old["tokens_per_s"], ours / theirs if ours and theirs else None, old)


def require_speed(comparison: Comparison, fail_ratio: float) -> None:
    """Raises: SlowerError: the speed is below ``fail_ratio`` of the earlier row's."""
    if comparison.speed < fail_ratio:
        raise SlowerError(
            f"{comparison.line()}: below --fail-ratio {fail_ratio}. Look for what changed, or measure again on an idle "
            "machine."
        )

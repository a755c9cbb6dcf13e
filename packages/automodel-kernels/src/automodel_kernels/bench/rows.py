"""One row a measurement: a flat dict that goes to JSON, a table of rows, and the comparison of two files."""

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

STATUSES = ("ok", "oom", "unsupported", "wrong")
_COLUMNS = ("op", "impl", "mode", "shape", "dtype", "ms_p50", "pct_of_floor", "peak_mb", "max_rel_err", "status")


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "driver": _driver() if cuda else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "threads": torch.get_num_threads(),
        "git": _git_sha(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, then one line for each implementation that could not run, with the reason."""
    shown = [row for row in rows if row["status"] != "unsupported"]
    lines = [[_cell(row.get(column)) for column in _COLUMNS] for row in shown]
    widths = [max(len(line[i]) for line in [list(_COLUMNS), *lines]) for i in range(len(_COLUMNS))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in [list(_COLUMNS), *lines]]
    absent = dict.fromkeys(f"{row['impl']}: {row['reason']}" for row in rows if row["status"] == "unsupported")
    return "\n".join([*text, *absent])


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]], fail_ratio: float) -> tuple[list[str], bool]:
    """Lines of ``old / new`` speed ratios, and whether any row got worse than ``fail_ratio`` or lost its status.

    A difference smaller than the spread of either run's own halves counts as equal.
    """
    keys = ("op", "impl", "mode", "shape", "dtype")
    before = {tuple(row[k] for k in keys): row for row in old}
    lines, failed = [], False
    for row in new:
        past = before.pop(tuple(row[k] for k in keys), None)
        label = " ".join(str(row[k]) for k in keys)
        if past is None:
            lines.append(f"new    {label}")
        elif row["status"] != past["status"]:
            worse = past["status"] == "ok"
            failed |= worse
            lines.append(f"{'WORSE ' if worse else 'changed'} {label}: {past['status']} -> {row['status']}")
        elif row["status"] == "ok":
            ratio = past["ms_p50"] / row["ms_p50"]
            noise = max(past.get("spread", 0.0), row.get("spread", 0.0))
            slow = ratio < fail_ratio and 1 - ratio > noise
            failed |= slow
            lines.append(f"{'SLOWER' if slow else 'ok    '} {label}: {ratio:.2f}x (noise {noise:.0%})")
    lines += [f"gone   {' '.join(map(str, key))}" for key in before]
    return lines, failed


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.1f}"
    return str(value)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git_sha() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return ""

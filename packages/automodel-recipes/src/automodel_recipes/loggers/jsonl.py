"""Append-only records of a run, one JSON object per line, readable while the run goes on."""

import json
import math
import time
from pathlib import Path
from typing import Any


class JsonlLogger:
    """Writes each row at once, so that a killed run keeps every row but perhaps the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, kind: str, row: dict[str, Any]) -> None:
        """Append ``row`` with its kind (``train``, ``val``, ...) and the wall-clock time in seconds."""
        self._file.write(json.dumps({"kind": kind, **_finite(row), "time": round(time.time(), 3)}) + "\n")

    def close(self) -> None:
        """Close the file; later rows are an error."""
        self._file.close()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: they are written as strings, never dropped."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a file; a torn last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows

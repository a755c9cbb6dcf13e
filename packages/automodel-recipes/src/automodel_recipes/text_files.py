"""Small files that readers never see half-written."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as indented JSON."""
    write_text(path, json.dumps(record, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    staging = path.with_name(f".{path.name}-{os.getpid()}")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)

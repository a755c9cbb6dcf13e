"""Files and columns that a configuration names: are they there?"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode
from automodel_core.config.kinds import KINDS, kind_of_role
from automodel_core.config.packages import is_package_path, resolve_package_path
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Leaf, Sequence, Table, join, walk
from automodel_recipes.validation.report import Report

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".bin", ".gz", ".zst")
_PATH_KEYS = ("path_or_dataset_id", "path_or_dataset", "dataset_name", "pretrained_model_name_or_path")
_WEIGHTS = ("*.safetensors", "*.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_FIRST_LINE_BYTES = 1 << 20


def check_files(config: ConfigNode, report: Report) -> None:
    """Report ``pkg://`` paths that name nothing, local files that are absent, and unknown columns of local data."""
    for path, tree in walk(config.tree):
        if isinstance(tree, Leaf) and isinstance(tree.value, str):
            key = path.rpartition(".")[2] if not path.rpartition(".")[2].isdecimal() else path.split(".")[-2]
            _check_path(tree, path, key, report)
        elif isinstance(tree, Table) and "column_mapping" in tree.entries:
            _check_columns(tree, path, report)
        elif isinstance(tree, Table) and kind_of_role(path) is KINDS["model"]:
            _check_model_directory(tree, path, report)


def _check_path(leaf: Leaf, path: str, key: str, report: Report) -> None:
    if is_package_path(leaf.value):
        try:
            resolve_package_path(leaf.value)
        except ValueError as error:
            report.add(leaf.source, path, str(error))
    elif key in _PATH_KEYS and is_local(leaf.value) and not _exists(leaf.value):
        what = "model directory" if key == "pretrained_model_name_or_path" else "data file"
        report.add(leaf.source, path, f"{leaf.value!r}: no such {what}; give an existing path, or a hub id")


def _check_model_directory(table: Table, path: str, report: Report) -> None:
    """A local directory that a model is loaded from has to hold a config.json and weights."""
    keys = ("pretrained_model_name_or_path", "_target_")
    leaf, target = (table.entries[key].value if key in table.entries else None for key in keys)
    if not isinstance(leaf, Leaf) or not isinstance(leaf.value, str) or not isinstance(target, Leaf):
        return
    try:
        folder = Path(resolve_package_path(leaf.value) if is_package_path(leaf.value) else leaf.value).expanduser()
    except ValueError:
        return  # reported as a path
    if not folder.is_dir() or not str(target.value).endswith(".from_pretrained") or "gguf_file" in table.entries:
        return
    place = join(path, "pretrained_model_name_or_path")
    if not (folder / "config.json").is_file():
        report.add(leaf.source, place, f"{leaf.value!r} holds no config.json; give a Hugging Face model directory")
    elif not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        message = f"{leaf.value!r} holds no weights ({', '.join(_WEIGHTS)}); give a complete one, or use from_config"
        report.add(leaf.source, place, message)


def is_local(value: str) -> bool:
    """Whether a value can only mean a path on this machine, not a hub id or a URL."""
    if "://" in value:
        return False
    if value.startswith((".", "/", "~")) or value.endswith((*_DATA_SUFFIXES, "/")):
        return True
    return _HUB_ID.fullmatch(value) is None


def _exists(value: str) -> bool:
    path = Path(value).expanduser()
    if any(character in value for character in "*?["):
        return next(_matches(path), None) is not None
    return path.exists()


def _matches(path: Path) -> Iterator[Path]:
    root = Path(path.anchor) if path.is_absolute() else Path()
    return iter(root.glob(str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)))


def _check_columns(table: Table, path: str, report: Report) -> None:
    """Compare a column mapping with the first row of local JSON lines, or the head of a CSV file."""
    mapping = table.entries["column_mapping"].value
    columns = _first_columns(table)
    if columns is None or not isinstance(mapping, Table):
        return
    for role, entry in mapping.entries.items():
        if isinstance(entry.value, Leaf) and isinstance(entry.value.value, str) and entry.value.value not in columns:
            name = entry.value.value
            message = f"the data has no column {name!r}{did_you_mean(name, columns)}"
            report.add(entry.value.source, join(join(path, "column_mapping"), role), message)


def _first_columns(table: Table) -> list[str] | None:
    for key in _PATH_KEYS[:3]:
        if key in table.entries:
            value = table.entries[key].value
            first = value.items[0] if isinstance(value, Sequence) and value.items else value
            return _columns_of(first.value) if isinstance(first, Leaf) and isinstance(first.value, str) else None
    return None


def _columns_of(value: str) -> list[str] | None:
    try:
        path = Path(resolve_package_path(value) if is_package_path(value) else os.path.expanduser(value))
        if any(character in value for character in "*?["):
            path = next(iter(sorted(_matches(path))), path)
        if path.suffix not in (".jsonl", ".csv", ".tsv") or not path.is_file():
            return None
        with path.open("rb") as file:
            line = file.readline(_FIRST_LINE_BYTES).decode("utf-8-sig")
        if path.suffix != ".jsonl":
            return sorted(next(csv.reader([line], delimiter="\t" if path.suffix == ".tsv" else ","))) or None
        row: Any = json.loads(line)
    except (OSError, ValueError, csv.Error):
        return None  # whoever reads the data says what is wrong with it
    return sorted(row) if isinstance(row, dict) else None

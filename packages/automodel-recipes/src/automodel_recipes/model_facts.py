"""Dimensions of public models by hub id, so that plans and checks need neither the hub nor the weights."""

import functools
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "model_configs"


@functools.cache
def _index() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Lower-case hub id to the file and the fields that differ from it."""
    index: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(ROOT.glob("*.json")):
        family = json.loads(path.read_text(encoding="utf-8"))
        for name, fields in family["models"].items():
            index[name.lower()] = (path, fields)
    return index


def known_models() -> list[str]:
    """Hub ids with shipped dimensions, in lower case."""
    return sorted(_index())


def find_facts(name: str) -> dict[str, Any] | None:
    """The fields of a model's ``config.json`` that fix its shapes; None for an unknown hub id.

    Variants of one size share an entry's shapes: ``-Instruct``, ``-it``, ``-Base`` and ``-Chat`` endings are looked up
    without their ending where they have no entry of their own.
    """
    key = name.lower()
    for candidate in (key, *(key.removesuffix(ending) for ending in ("-instruct", "-it", "-base", "-chat"))):
        if candidate in _index():
            path, fields = _index()[candidate]
            shared = json.loads(path.read_text(encoding="utf-8"))["shared"]
            return _merge(shared, fields)
    return None


def _merge(shared: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    merged = dict(shared)
    for key, value in fields.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

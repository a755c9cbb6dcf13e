"""Numbers of a configuration, and of the model that it names."""

import json
from pathlib import Path
from typing import Any

from automodel_core.config import ConfigError, ConfigNode
from automodel_recipes.model_facts import find_facts


def number(config: ConfigNode, path: str) -> int | None:
    """The whole number above 0 at a path; None for anything else."""
    value = config.get(path)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def model_facts(config: ConfigNode) -> dict[str, Any] | None:
    """The model's dimensions: from its directory's config.json, or from the facts that ship for its hub id."""
    try:
        source = config.path("model.pretrained_model_name_or_path")
    except ConfigError:
        return None  # reported with the files
    if not isinstance(source, str):
        return None
    file = Path(source).expanduser() / "config.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else find_facts(source)
    except (OSError, ValueError):
        return None
    return facts | facts.get("text_config", {}) if isinstance(facts, dict) else None

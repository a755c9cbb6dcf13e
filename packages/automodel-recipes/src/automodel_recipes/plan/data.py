"""The longest row of the data, where they lie on this machine."""

from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode

_MOST_ROWS = 2000
_PATHS = ("path_or_dataset_id", "path_or_dataset", "path", "data_path")


def longest_row(config: ConfigNode) -> int | None:
    """Tokens of the longest of the first two thousand rows; None where data or tokenizer are not on this disk.

    Packed and vision-language rows are planned by their configured length.
    """
    if config.get("packed_sequence.packed_sequence_size") or str(config.get("recipe", "")).startswith("VLM"):
        return None
    return max(row_lengths_here(config), default=None)


def row_lengths_here(config: ConfigNode) -> list[int]:
    """Tokens of the first two thousand rows; none where data or tokenizer are not on this disk."""
    if not _is_here(config, "dataset", _PATHS) or not _tokenizer_is_here(config):
        return []
    from automodel_recipes.data_rows import open_rows

    dataset, _ = open_rows(config)
    return [len(_ids(dataset[i])) for i in range(min(len(dataset), _MOST_ROWS))]


def _tokenizer_is_here(config: ConfigNode) -> bool:
    keys = ("pretrained_model_name_or_path", "config")
    return _is_here(config, "tokenizer", keys) if "tokenizer" in config else _is_here(config, "model", keys)


def _is_here(config: ConfigNode, section: str, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if isinstance(config.get(f"{section}.{key}"), str):
            where = config.path(f"{section}.{key}")
            return where is not None and Path(where).exists()
    return False


def _ids(row: Any) -> Any:
    return row["input_ids"]

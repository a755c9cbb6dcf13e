"""Names for encoded data: change anything that could change a token, and the name changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_data.sources import source_fingerprint

if TYPE_CHECKING:
    from automodel_data.build import RowEncoder

_CODE = ("build", "encode", "jsonlines", "markers", "rows", "sources", "templates", "llm.chat", "llm.column_mapped")


def dataset_key(source: Any, row_encoder: RowEncoder, *, limit: int | None) -> str | None:
    """The cache key of a source encoded one way: data bytes, tokenizer, template, options and the code's own text.

    Returns: a hexadecimal name, or None where the source's content has no fingerprint.
    """
    data = source_fingerprint(source)
    if data is None:
        return None
    parts = {
        "data": data,
        "tokenizer": row_encoder.encoder.fingerprint(),
        "policy": asdict(row_encoder.policy),
        "add_prefix": row_encoder.add_prefix,
        "options": dict(row_encoder.options or {}),
        "limit": limit,
        "code": _code_digest(),
    }
    return "tokens-" + hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _code_digest() -> str:
    digest = hashlib.sha256()
    for module in _CODE:
        spec = find_spec(f"automodel_data.{module}")
        assert spec is not None
        assert spec.origin is not None
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def stream_hash(rows: Iterable[dict[str, Any]]) -> str:
    """A hash of the tokens and labels of rows in their order: equal streams train the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([list(map(int, row["input_ids"])), list(map(int, row["labels"]))]).encode())
    return digest.hexdigest()

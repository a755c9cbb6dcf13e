"""Shapes by name, with changes: ``llama8b:T=16384,valid=0.3``."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of one case; ops use what they need."""

    T: int = 2048
    """Tokens."""
    H: int = 256
    """Hidden size."""
    V: int = 32000
    """Vocabulary."""
    I: int = 1024
    """MLP size."""
    heads: int = 4
    kv: int = 2
    D: int = 64
    """Head size."""
    rank: int = 16
    """LoRA rank."""
    valid: float = 1.0
    """Share of tokens with a label."""


PRESETS = {
    "small": Shape(),  # sized for two CPU cores
    "llama1b": Shape(T=16384, H=2048, V=128256, I=8192, heads=32, kv=8, D=64),
    "llama8b": Shape(T=16384, H=4096, V=128256, I=14336, heads=32, kv=8, D=128),
}


def parse_shape(text: str) -> Shape:
    """Read ``preset`` or ``preset:key=value,...``.

    Raises: ValueError: an unknown preset or key, or a value that is no number.
    """
    name, _, changes = text.partition(":")
    if name not in PRESETS:
        raise ValueError(f"shape {name!r}: it must be one of {', '.join(sorted(PRESETS))}, changed as in small:T=512.")
    known = {field.name: field.type for field in dataclasses.fields(Shape)}
    values: dict[str, int | float] = {}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        if key not in known:
            raise ValueError(f"shape key {key!r}: it must be one of {', '.join(known)}.")
        try:
            values[key] = float(value) if key == "valid" else int(value)
        except ValueError:
            raise ValueError(f"shape value {change!r}: it must be a number, as in {key}=1.") from None
    return dataclasses.replace(PRESETS[name], **values)  # type: ignore[arg-type]

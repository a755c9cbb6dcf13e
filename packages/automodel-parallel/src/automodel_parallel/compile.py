"""Compile each block on its own: one graph for all layers of a shape, a short compile, no renamed parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from automodel_parallel.blocks import find_blocks
from automodel_parallel.report import ParallelReport


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """Settings of ``torch.compile`` for the blocks."""

    enabled: bool = True
    """False leaves the blocks as they are."""
    backend: str = "inductor"
    """Name of the compiler backend."""
    mode: str | None = None
    """Mode of inductor, such as ``max-autotune``; None: its default."""
    fullgraph: bool = False
    """Fail where the compiler would break the graph."""
    dynamic: bool | None = None
    """True: one graph for all sequence lengths; None: decided at the second length."""

    @classmethod
    def parse(cls, value: bool | Mapping[str, Any] | CompileConfig | None) -> CompileConfig:
        """From YAML: ``true``, ``false``, or a mapping of the fields.

        Raises: ValueError: an unknown key.
        """
        if isinstance(value, CompileConfig):
            return value
        if value is None or isinstance(value, bool):
            return cls(enabled=bool(value))
        unknown = sorted(set(value) - set(cls.__dataclass_fields__))
        if unknown:
            allowed = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"compile has unknown key {unknown[0]!r}: allowed are {allowed}. Remove it.")
        return cls(**value)


def compile_blocks(model: nn.Module, config: CompileConfig, *, report: ParallelReport) -> None:
    """``module.compile()`` on every block, in place.

    Raises: ValueError: the model has no blocks.
    """
    if not config.enabled:
        return
    blocks = find_blocks(model)
    if not blocks:
        raise ValueError(f"compile found no blocks (module lists) in {type(model).__name__}. Set compile to false.")
    for _, block in blocks:
        block.compile(backend=config.backend, mode=config.mode, fullgraph=config.fullgraph, dynamic=config.dynamic)
    report.add(f"compile: {len(blocks)} blocks with {config.backend}")

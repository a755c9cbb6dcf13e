"""Activation checkpointing and offload of a model's blocks, without renaming a parameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from automodel_parallel.blocks import find_blocks
from automodel_parallel.report import ParallelReport

MODES = ("none", "full", "selective", "memory_budget")
_SAVED_BY_DEFAULT = ("aten.mm", "aten.addmm", "aten.bmm", "aten._scaled_dot_product_*", "_c10d_functional.*")


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """What a block's backward recomputes instead of keeping."""

    mode: str = "full"
    """``full``: keep block inputs only. ``selective``: keep the results of ``save_ops``, recompute the rest.
    ``memory_budget``: the compiler chooses, within ``budget``; needs compile. ``none``: keep all."""
    save_ops: tuple[str, ...] = _SAVED_BY_DEFAULT
    """Patterns of op names that ``selective`` keeps: matrix products, attention and communication."""
    every: int = 1
    """Checkpoint every n-th block: 2 keeps half of the activations at half of the recomputation."""
    budget: float = 0.5
    """Share of the activations that ``memory_budget`` may keep, 0 to 1."""
    scope: str = "*"
    """Pattern of block paths, e.g. ``*language_model*``."""
    offload: bool = False
    """Move what is kept to host memory between forward and backward."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"activation_checkpointing mode {self.mode!r}: allowed are {', '.join(MODES)}. Change it.")
        if self.every < 1:
            raise ValueError(f"activation_checkpointing every={self.every}: it must be >= 1. Use 1 for each block.")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"activation_checkpointing budget={self.budget}: it must be between 0 and 1. Change it.")

    @classmethod
    def parse(cls, value: bool | str | Mapping[str, Any] | ActivationCheckpointing | None) -> ActivationCheckpointing:
        """From YAML: ``true``, a mode's name, or a mapping of the fields.

        Raises: ValueError: an unknown mode or key.
        """
        if isinstance(value, ActivationCheckpointing):
            return value
        if value is None or isinstance(value, bool):
            return cls(mode="full" if value else "none")
        if isinstance(value, str):
            return cls(mode=value)
        unknown = sorted(set(value) - set(cls.__dataclass_fields__))
        if unknown:
            allowed = ", ".join(cls.__dataclass_fields__)
            raise ValueError(
                f"activation_checkpointing has unknown key {unknown[0]!r}: allowed are {allowed}. Remove it."
            )
        settings = dict(value)
        if "save_ops" in settings:
            settings["save_ops"] = tuple(settings["save_ops"])
        return cls(**settings)


def apply_activation_checkpointing(
    model: nn.Module, settings: ActivationCheckpointing, *, compiled: bool, report: ParallelReport
) -> None:
    """Make the blocks in ``settings.scope`` recompute their activations, in place.

    The instance's ``forward`` is replaced, so that modules and parameters keep their names.

    Raises: ValueError: no block matches, or ``memory_budget`` without compile.
    """
    if settings.mode == "none" and not settings.offload:
        return
    blocks = [(name, block) for name, block in find_blocks(model) if fnmatch.fnmatch(name, settings.scope)]
    if not blocks:
        names = ", ".join(name for name, _ in find_blocks(model)[:3]) or "none"
        raise ValueError(
            f"activation_checkpointing scope {settings.scope!r} matches no block of {type(model).__name__} (blocks: "
            f"{names}, ...). Change the scope, or turn activation_checkpointing off."
        )
    if settings.mode == "memory_budget":
        _set_memory_budget(settings.budget, compiled=compiled)
        report.add(f"activation checkpointing: the compiler keeps {settings.budget:.0%} of the activations")
        return
    chosen = blocks[:: settings.every]
    for _, block in chosen:
        block.forward = _checkpointed(block.forward, settings)
    offload = ", kept tensors on the host" if settings.offload else ""
    report.add(f"activation checkpointing: {settings.mode} on {len(chosen)} of {len(blocks)} blocks{offload}")


def _checkpointed(forward: Callable[..., Any], settings: ActivationCheckpointing) -> Callable[..., Any]:
    context_fn: dict[str, Any] = {}
    if settings.mode == "selective":
        context_fn = {"context_fn": partial(create_selective_checkpoint_contexts, _policy(settings.save_ops))}

    def recomputing_forward(*args: Any, **kwargs: Any) -> Any:
        with save_on_cpu(pin_memory=torch.cuda.is_available()) if settings.offload else nullcontext():
            if settings.mode == "none" or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, **context_fn)

    return recomputing_forward


def _policy(save_ops: tuple[str, ...]) -> Callable[..., CheckpointPolicy]:
    kept: dict[str, bool] = {}

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = str(op)
        if name not in kept:
            kept[name] = any(fnmatch.fnmatch(name, f"{pattern}*") for pattern in save_ops)
        return CheckpointPolicy.MUST_SAVE if kept[name] else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def _set_memory_budget(budget: float, *, compiled: bool) -> None:
    if not compiled:
        raise ValueError(
            "activation_checkpointing mode memory_budget without compile: the compiler makes the choice. Set compile: "
            "true, or use mode full or selective."
        )
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = budget

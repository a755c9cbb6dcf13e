"""The order in which a model is put together, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automodel_parallel.context import ParallelContext
from automodel_parallel.report import ParallelReport

Transform = Callable[[nn.Module], Any]


@dataclass
class Assembly:
    """A model that is ready to train, and what was done to it."""

    model: nn.Module
    """What runs forward: the model, or its wrapper."""
    parallel: ParallelReport
    """The edits of the strategy."""
    reports: list[Any] = field(default_factory=list)
    """What each transform, the load and the initialisation returned, in order; None left out."""


def assemble(
    model: nn.Module,
    context: ParallelContext,
    *,
    transforms: Sequence[Transform] = (),
    load: Transform | None = None,
    initialize: Transform | None = None,
) -> Assembly:
    """Edit, cut, checkpoint, compile, shard, materialise, load, initialise: the only order in which all of it works.

    Args:
        model: on the meta device, or with weights; a model with weights needs no ``load``.
        context: the strategy bound to its ranks.
        transforms: edits of the whole model, in this order: freeze, LoRA, kernels, FP8. They come before anything is
            cut, so that they see plain modules.
        load: reads base weights straight into the shards; called with the model's own module, materialised.
        initialize: fills what no file holds (LoRA, new heads), after the load.

    Returns: the assembled model and its reports.
    Raises: ValueError: a model on the meta device without ``load``.
    """
    reports = [transform(model) for transform in transforms]
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta and load is None:
        raise ValueError("assemble got a model on the meta device without load: weights would be garbage. Give load.")
    wrapped, parallel = context.parallelize(model)
    plain = context.unwrap(wrapped)
    if on_meta:
        materialize(plain, context.parameter_device)
    reports += [step(plain) for step in (load, initialize) if step is not None]
    return Assembly(wrapped, parallel, [report for report in reports if report is not None])


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give a model on the meta device memory, right buffers and its ties; parameter values are the load's business.

    Non-persistent buffers (rotary frequencies) are in no file: ``to_empty`` leaves garbage in them while a load reports
    that every key matched, so they are computed again, where ``recompute_buffers`` has not done it before.
    """
    computed = [(m, name, m._buffers[name]) for m in model.modules() for name in _computed_buffers(m)]
    model.to_empty(device=device)
    for module, name, buffer in computed:
        module._buffers[name] = buffer if buffer.is_meta else buffer.to(device)
    recompute_buffers(model, device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def recompute_buffers(model: nn.Module, device: torch.device) -> None:
    """Fill the non-persistent buffers on the meta device that a Hugging Face model computes from its config.

    Raises: ValueError: a module holds such a buffer and knows no way to compute it.
    """
    for name, module in model.named_modules():
        names = [name for name in _computed_buffers(module) if module._buffers[name].is_meta]
        if not names:
            continue
        for buffer in names:
            module._buffers[buffer] = _unfilled(module._buffers[buffer], device)
        if hasattr(module, "config") and hasattr(module, "rope_type"):
            fresh = type(module)(config=module.config).to(device)
            module._buffers.update({buffer: fresh._buffers[buffer] for buffer in names})
        elif (owner := _initializer(model, name)) is not None:
            _fill_by_init_weights(owner, module)
        if left := [buffer for buffer in names if _is_unfilled(module._buffers[buffer])]:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has computed buffers {left} that cannot be "
                "rebuilt after meta initialisation. Build the model with weights instead."
            )


def _initializer(model: nn.Module, path: str) -> nn.Module | None:
    """The innermost Hugging Face model around a module: a vision tower fills its own buffers, not the whole's."""
    parts = path.split(".") if path else []
    around = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts), -1, -1)]
    return next((module for module in around if hasattr(module, "_init_weights")), None)


def _computed_buffers(module: nn.Module) -> list[str]:
    return [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]


_NEVER = -(2**40) - 1  # an integer that no position or index has


def _unfilled(buffer: Tensor, device: torch.device) -> Tensor:
    value: float = float("nan") if buffer.is_floating_point() else _NEVER if buffer.dtype == torch.int64 else 0
    return torch.full(buffer.shape, value, dtype=buffer.dtype, device=device)


def _is_unfilled(buffer: Tensor) -> bool:
    if buffer.is_floating_point():
        return bool(buffer.isnan().any())
    return buffer.dtype == torch.int64 and bool((buffer == _NEVER).any())


def _fill_by_init_weights(model: nn.Module, module: nn.Module) -> None:
    """Let transformers fill position ids and scales, keeping its hands off the (sharded) parameters."""
    held = module._parameters
    module._parameters = {
        name: None if parameter is None else nn.Parameter(torch.empty(parameter.shape, device="meta"))
        for name, parameter in held.items()
    }
    try:
        model._init_weights(module)
    finally:
        module._parameters = held

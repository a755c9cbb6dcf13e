"""The order in which a model is put together, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

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
    that every key matched, so they are computed again.
    """
    model.to_empty(device=device)
    recompute_buffers(model, device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def recompute_buffers(model: nn.Module, device: torch.device) -> None:
    """Fill the non-persistent buffers that a Hugging Face model computes from its config.

    Raises: ValueError: a module holds such a buffer and knows no way to compute it.
    """
    for name, module in model.named_modules():
        names = module._non_persistent_buffers_set & module._buffers.keys()
        if not names:
            continue
        if hasattr(module, "config") and hasattr(module, "rope_type"):
            fresh = type(module)(config=module.config).to(device)
        elif hasattr(model, "_init_weights"):
            _fill_by_init_weights(model, module)
            continue
        else:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has computed buffers {sorted(names)} that cannot be "
                "rebuilt after meta initialisation. Build the model with weights instead."
            )
        for buffer in names:
            module._buffers[buffer] = fresh._buffers[buffer]


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

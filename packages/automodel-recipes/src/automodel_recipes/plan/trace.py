"""One training step of a configuration on tensors without memory: the recipe's own code, start to end."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_parallel.blocks import find_blocks
from automodel_recipes.batches import Batch
from automodel_recipes.build.optim import build_recipe_optimizer
from automodel_recipes.build.training import build_ema
from automodel_recipes.flops import StepFlops, step_flops
from automodel_recipes.memory.ghost import Collective, EqualChunks, ghost_tensors
from automodel_recipes.memory.live import ACTIVATIONS, HEAD, UPDATE, LiveTensors
from automodel_recipes.options import TrainOptions
from automodel_recipes.plan.quantized import saved_by_quantization
from automodel_recipes.plan.stages import LoneStages
from automodel_recipes.plan.weightless import without_weights
from automodel_recipes.run import configured_recipe
from automodel_recipes.train_step import train_step

PARAMETERS, GRADIENTS, OPTIMIZER, BUFFERS = "parameters", "gradients", "optimizer", "buffers"
AVERAGES = "weight averages"


@dataclass
class StepTrace:
    """What one rank's step does."""

    live: LiveTensors
    """Its storage over time."""
    static: dict[str, int]
    """Bytes of parameters, gradients, optimizer state and buffers on this rank."""
    collectives: list[Collective]
    """Its communication in one step."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Whole and local shape of every parameter on this rank."""
    num_parameters: int
    """Parameters of the whole model, tied ones once."""
    num_trainable: int
    reports: list[str]
    """What the strategy and the edits did to the model."""
    model_config: Any
    """The transformers config."""
    quantized: bool
    """Whether the base is smaller than its trace, so that ``static`` and not ``live`` knows the parameters' size."""
    flops: StepFlops
    """What the step computes."""


def trace_step(
    config: ConfigNode,
    *,
    parallel: Any,
    micro_batches: Callable[[Any], Sequence[Batch]],
    tokenizer: Any = None,
    like_gpu: bool = False,
) -> StepTrace:
    """Build the model of ``config`` without weights, spread it by ``parallel``, and train one step.

    Args:
        parallel: the parallel context, bound to real ranks or to imagined ones. It is not changed.
        micro_batches: from the recipe, with its model, to this rank's micro-batches.
        tokenizer: handed to what takes one.
        like_gpu: let the optimizer work on all parameters at once, as it does on a GPU.

    Raises: ValueError: what the strategy refuses, such as sizes that do not divide.
    """
    r: Any = configured_recipe(config)(without_weights(config), TrainOptions(quiet=True))
    r.parallel = _on_ghosts(parallel)
    r.device, r.seed, r.tokenizer = torch.device("cpu"), 0, tokenizer
    with ghost_tensors() as ghost:
        with EqualChunks():
            r.build_model()
        if r.parallel.pipeline is not None:
            r.parallel.pipeline = LoneStages(r.parallel.pipeline, ghost.collectives)
        r.max_grad_norm = config.get("clip_grad_norm.max_norm", 1.0)
        r.optimizer = r.parallel.prepare_optimizer(build_recipe_optimizer(config, r.unwrapped()))
        r.watchdog, r.loss_scaler = SimpleNamespace(take_step=_take_step), None
        r.ema = build_ema(config, r.unwrapped())
        r.lr_schedule = SimpleNamespace(last_lr=0.0, step=lambda: None)
        if like_gpu:
            _update_at_once(r.optimizer)
        batches = list(micro_batches(r))
        ghost.collectives.clear()
        live = LiveTensors()
        with watched_step(r, live) as watched:
            train_step(r, batches)
        static = watched.static()
        saved = saved_by_quantization(config, r.unwrapped())
        static[PARAMETERS] -= saved
    return StepTrace(
        live=live,
        static=static,
        collectives=ghost.collectives,
        shapes=_shapes(r.unwrapped()),
        num_parameters=r.built.num_parameters,
        num_trainable=r.built.num_trainable,
        reports=[str(report) for report in r.built.reports],
        model_config=r.unwrapped().config,
        quantized=saved > 0,
        flops=step_flops(r.unwrapped()),
    )


def _take_step(optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor) -> torch.Tensor:
    """As the watch-dog on finite gradients: a norm without a value cannot be judged."""
    optimizer.step()
    return torch.zeros_like(grad_norm)


def _on_ghosts(parallel: Any) -> Any:
    """The context for a model without memory: it moves nothing, and DDP, which reaches for addresses, stays away.

    A copy, since a strategy may remember what it did to its model.
    """
    from automodel_parallel import ParallelContext

    context = copy.copy(parallel)
    context._to_device = lambda model: model
    if context.strategy == "ddp":
        context.parallelize = partial(ParallelContext.parallelize, context)
    return context


class WatchedStep:
    """The categories of a step's storage, gathered by hooks while it runs."""

    def __init__(self, r: Any, live: LiveTensors) -> None:
        self._r, self._live = r, live
        self._gradients = 0

    def declare(self) -> None:
        """What is there before the step."""
        model, live = self._r.unwrapped(), self._live
        live.hold(BUFFERS, model.buffers())
        live.hold(OPTIMIZER, self._optimizer_tensors())
        live.hold(PARAMETERS, model.parameters())
        if (ema := getattr(self._r, "ema", None)) is not None:
            live.hold(AVERAGES, ema.state_dict()["averages"].values())
        if (teacher := getattr(self._r, "teacher", None)) is not None:
            live.hold(PARAMETERS, [*teacher.parameters(), *teacher.buffers()])

    def enter_update(self, *_: Any) -> None:
        """All gradients are there."""
        self._live.hold(GRADIENTS, (p.grad for p in self._r.unwrapped().parameters() if p.grad is not None))
        self._gradients = self._live.held(GRADIENTS)
        self._live.scope = UPDATE

    def leave_update(self, *_: Any) -> None:
        """The optimizer has its state."""
        self._live.hold(OPTIMIZER, self._optimizer_tensors())
        self._live.scope = ACTIVATIONS

    def static(self) -> dict[str, int]:
        """Bytes that stay from step to step, and of the gradients."""
        names = (PARAMETERS, OPTIMIZER, BUFFERS)
        return {name: self._live.held(name) for name in names} | {GRADIENTS: self._gradients}

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        for state in self._r.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


@contextmanager
def watched_step(r: Any, live: LiveTensors) -> Iterator[WatchedStep]:
    """Within the block ``live`` sees what the recipe's steps make, by category."""
    watched = WatchedStep(r, live)
    handles = [
        r.optimizer.register_step_pre_hook(watched.enter_update),
        r.optimizer.register_step_post_hook(watched.leave_update),
        *_mark_head(r.unwrapped(), live),
    ]
    try:
        with live:
            watched.declare()
            yield watched
    finally:
        for handle in handles:
            handle.remove()


def _mark_head(model: torch.nn.Module, live: LiveTensors) -> list[Any]:
    """From the end of the last block to the return of its gradient, what is made belongs to logits and loss."""
    blocks = find_blocks(model)
    if not blocks:
        return []

    def enter_head(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        live.scope = HEAD
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(leave_head)

    def leave_head(_gradient: torch.Tensor) -> None:
        live.scope = ACTIVATIONS

    return [blocks[-1][1].register_forward_hook(enter_head)]


def _update_at_once(optimizer: torch.optim.Optimizer) -> None:
    from torch.distributed.tensor import DTensor

    for group in optimizer.param_groups:
        plain = not any(isinstance(p, DTensor) for p in group["params"])
        if plain and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


def _shapes(model: torch.nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    shapes = {}
    for name, parameter in model.named_parameters():
        local = getattr(parameter, "_local_tensor", parameter)
        shapes[name] = (tuple(parameter.shape), tuple(local.shape))
    return shapes

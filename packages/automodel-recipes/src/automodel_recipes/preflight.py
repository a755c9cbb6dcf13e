"""The largest step first: train on the longest micro-batch, to fail in the first minute and not in the last epoch."""

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.errors import RecipeError
from automodel_recipes.train_step import train_step

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def preflight(r: "BaseRecipe") -> None:
    """One whole step on the longest rows with a learning rate of 0; nothing of it stays.

    Called after the run is built and before it resumes. Optimizer state that the step makes is dropped, random
    generators are put back, and the data position does not move.

    Raises: RecipeError: the optimizer changes weights at a learning rate of 0, which cannot be undone.
    """
    number = r.step_scheduler.grad_acc_steps
    batches = [r.train_loader.longest_micro_batch()] * (number if r.parallel.pipeline is not None else min(number, 2))
    before, random = _fingerprint(r), r.rng.state_dict()
    kept: dict[str, Any] = {"lr_schedule": r.lr_schedule, "ema": r.ema, "loss_scaler": r.loss_scaler}
    rates = [group["lr"] for group in r.optimizer.param_groups]
    try:
        r.lr_schedule, r.ema = SimpleNamespace(last_lr=0.0, step=lambda: None), None
        r.loss_scaler = copy.deepcopy(r.loss_scaler)
        for group in r.optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        with r.memory.watching():
            train_step(r, batches)
    finally:
        for name, value in kept.items():
            setattr(r, name, value)
        for group, rate in zip(r.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        r.optimizer.zero_grad(set_to_none=True)
        r.optimizer.state.clear()
        r.rng.load_state_dict(random)
    if r.parallel.any_rank(before != _fingerprint(r)):
        raise RecipeError(
            f"{type(r.optimizer).__name__} changes weights at a learning rate of 0, so --preflight has changed the "
            "model. Start again without it."
        )
    rows, tokens = batches[0]["input_ids"].shape[:2]
    r.console.fact("fits", f"longest rows: {len(batches)} x {rows} x {tokens} tokens, {r.memory.end_text()}")


def _fingerprint(r: "BaseRecipe") -> list[float]:
    """A sum over each local parameter that trains; equal bits give equal sums."""
    local = (getattr(p, "_local_tensor", p).detach() for p in r.unwrapped().parameters() if p.requires_grad)
    return [float(parameter.double().sum()) for parameter in local]

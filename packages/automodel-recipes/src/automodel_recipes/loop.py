"""The training loop: train, log, validate, save; then finish."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automodel_recipes.batches import sample_ids
from automodel_recipes.errors import Interrupted, NonFiniteLossError
from automodel_recipes.evaluate import EvalMetrics
from automodel_recipes.train_step import train_step

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


@dataclass
class TrainSummary:
    """What a run came to."""

    steps: int
    seconds: float
    last_loss: float | None = None
    validation: dict[str, EvalMetrics] = field(default_factory=dict)
    exact_match: dict[str, float] = field(default_factory=dict)


def train_loop(r: "BaseRecipe") -> TrainSummary:
    """Run a recipe after ``setup`` to its end.

    Raises:
        NonFiniteLossError: a loss or gradient norm is not finite; names the samples of that step.
        Interrupted: a stop signal came; a checkpoint was written first where checkpoints are enabled.
    """
    start = time.monotonic()
    summary = TrainSummary(steps=r.step_scheduler.step, seconds=0.0)
    r.records.start()
    if not r.options.dry_run:
        measure(r, summary, moment="start")
        _run_steps(r, summary)
        measure(r, summary, moment="end")
    summary.steps = r.step_scheduler.step
    summary.seconds = time.monotonic() - start
    r.records.finish(summary)
    return summary


def _run_steps(r: "BaseRecipe", summary: TrainSummary) -> None:
    clock = time.monotonic()
    for micro_batches in r.step_scheduler:
        waited = time.monotonic() - clock
        metrics = train_step(r, micro_batches)
        row = r.records.train_row(metrics, micro_batches, seconds=time.monotonic() - clock, waited=waited)
        if row is not None:
            summary.last_loss = row["loss"]
            _check_finite(r, row, micro_batches)
        if r.step_scheduler.is_val_step and not r.step_scheduler.is_last_step:
            measure(r, summary, moment="step")
        stopping = r.parallel.any_rank(bool(r.stop))
        enough = r.options.max_steps is not None and r.step_scheduler.step >= r.options.max_steps
        if r.step_scheduler.is_ckpt_step or stopping or enough:
            r.checkpointer.save(summary)
        if stopping:
            r.checkpointer.wait()
            _raise_interrupted(r)
        if enough:
            return
        clock = time.monotonic()


def measure(r: "BaseRecipe", summary: TrainSummary, *, moment: str) -> None:
    """Validation loss and, at the start and the end, generated answers; recorded and put into the summary."""
    if moment == "start" and not r.config.get("evaluation.at_start", True):
        return
    summary.validation = r.evaluate()
    for name, metrics in summary.validation.items():
        r.records.val_row(name, metrics)
    if moment != "step" and r.config.get("evaluation.exact_match", False):
        from automodel_recipes.generation import measure_exact_match

        summary.exact_match[moment] = measure_exact_match(r, moment=moment)


def _check_finite(r: "BaseRecipe", row: dict, micro_batches: list) -> None:
    if all(abs(row[key]) < float("inf") for key in ("loss", "grad_norm")):
        return
    raise NonFiniteLossError(
        f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}. "
        f"Samples of this step on rank {r.parallel.rank}: {sample_ids(micro_batches)}. "
        "Look at these rows, lower optimizer.lr, or set clip_grad_norm.max_norm."
    )


def _raise_interrupted(r: "BaseRecipe") -> None:
    import signal

    number = r.stop.signal_number or int(signal.SIGTERM)
    saved = "checkpoint written; go on with --resume auto" if r.checkpointer.enabled else "checkpoints are not enabled"
    raise Interrupted(number, f"stopped by {signal.Signals(number).name} after step {r.step_scheduler.step}; {saved}.")

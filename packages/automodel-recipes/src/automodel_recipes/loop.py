"""The training loop: train, log, validate, save; then finish."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automodel_recipes.batches import Batch
from automodel_recipes.data_wait import Window, next_window
from automodel_recipes.errors import Interrupted
from automodel_recipes.evaluate import EvalMetrics, named_metrics
from automodel_recipes.incidents import report_incidents
from automodel_recipes.interrupt import StopAgreed
from automodel_recipes.phase_times import CHECKPOINT, DATA, EVAL, build_phase_times
from automodel_recipes.start_check import check_start
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
    validated_step: int | None = None
    """The step that ``validation`` speaks of."""
    moments: list[str] = field(default_factory=list)
    """``start``, ``step`` and ``end``, in the order in which they were measured."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase, where ``monitoring.phase_times`` is set."""
    stop_reason: str | None = None
    """Why the run ended before its schedule, where it did."""


def train_loop(r: "BaseRecipe") -> TrainSummary:
    """Run a recipe after ``setup`` to its end.

    Raises:
        NonFiniteLossError, LossSpikeError: as the ``watchdog`` section says; they name samples.
        Interrupted: a stop signal came; a checkpoint was written first where checkpoints are enabled.
    """
    r.records.start()
    try:
        return _run(r)
    except BaseException as error:
        r.records.ended(error)
        raise


def _run(r: "BaseRecipe") -> TrainSummary:
    start = time.monotonic()
    r.phases = build_phase_times(r.config, r.device)
    summary = TrainSummary(steps=r.step_scheduler.step, seconds=0.0)
    try:
        if not r.options.dry_run:
            measure(r, summary, moment="start")
            check_start(r)
            r.console.blank()
            _run_steps(r, summary)
            if "end" not in summary.moments:  # stopped early, or resumed behind the last step
                measure(r, summary, moment="end")
    except StopAgreed as stop:
        _save_and_leave(r, summary, stop.signal_number)
    summary.steps = r.step_scheduler.step
    summary.seconds = time.monotonic() - start
    r.records.finish(summary)
    return summary


def _run_steps(r: "BaseRecipe", summary: TrainSummary) -> None:
    windows = iter(r.step_scheduler)
    clock = time.monotonic()
    while not _enough(r) and (window := _timed_window(r, windows)) is not None:
        if r.built.qat is not None:
            r.built.qat.before_step(r.step_scheduler.step)
        with r.profiler.step(r.step_scheduler.step), r.memory.watching():
            metrics = train_step(r, window.micro_batches)
        r.watchdog.remember(r.step_scheduler.step, metrics, window.micro_batches)
        row = r.records.train_row(metrics, window.micro_batches, started=clock, waited=window.seconds)
        if row is not None:
            summary.last_loss = row["loss"]
        if row is not None or r.step_scheduler.is_ckpt_step or _enough(r):
            report_incidents(r, window.micro_batches)
        # Before the save, so that the checkpoint knows how good it is.
        ending = r.step_scheduler.is_last_step or _enough(r)
        improved = False
        if ending or r.step_scheduler.is_val_step:
            measure(r, summary, moment="end" if ending else "step")
            improved = _judge(r, summary)
        if r.step_scheduler.is_ckpt_step or window.save or improved or _enough(r) or summary.stop_reason:
            with r.phases(CHECKPOINT):
                r.checkpointer.save(summary)
        if summary.stop_reason:
            return
        clock = time.monotonic()


def _timed_window(r: "BaseRecipe", windows: Iterator[list[Batch]]) -> Window | None:
    with r.phases(DATA):
        return next_window(r, windows)


def _judge(r: "BaseRecipe", summary: TrainSummary) -> bool:
    """Whether the metric of ``early_stopping`` is better than ever; sets the reason to stop where there is one."""
    if r.early_stopping is None:
        return False
    seen = r.early_stopping.observe(r.step_scheduler.step, named_metrics(summary.validation))
    if seen.stop_reason is not None:
        summary.stop_reason = f"early stopping: {seen.stop_reason}"
        r.records.event("early_stop", reason=summary.stop_reason)
        r.console.fact("stop", summary.stop_reason)
    return seen.improved


def _enough(r: "BaseRecipe") -> bool:
    return r.options.max_steps is not None and r.step_scheduler.step >= r.options.max_steps


def measure(r: "BaseRecipe", summary: TrainSummary, *, moment: str) -> None:
    """Validation loss and, at the start and the end, generated answers; recorded and put into the summary."""
    if moment == "start" and not r.config.get("evaluation.at_start", True):
        return
    with r.phases(EVAL), r.averaged():
        if summary.validated_step != r.step_scheduler.step:
            summary.validation, summary.validated_step = r.evaluate(), r.step_scheduler.step
            for name, metrics in summary.validation.items():
                r.records.val_row(name, metrics)
        _generate(r, summary, moment)
    summary.moments.append(moment)


def _generate(r: "BaseRecipe", summary: TrainSummary, moment: str) -> None:
    exact, num_step_samples = (r.config.get(f"evaluation.{key}", 0) for key in ("exact_match", "num_step_samples"))
    if moment != "step" and exact:
        from automodel_recipes.generation import measure_exact_match

        summary.exact_match[moment] = measure_exact_match(r, moment=moment)
    elif num_step_samples:
        from automodel_recipes.generation import write_step_samples

        write_step_samples(r, int(num_step_samples))


def _save_and_leave(r: "BaseRecipe", summary: TrainSummary, signal_number: int) -> None:
    step = r.step_scheduler.step
    if step > 0:
        r.checkpointer.save(summary)
        r.checkpointer.wait()
    saved = "checkpoint written; go on with --resume auto"
    if not r.checkpointer.enabled:
        saved = "checkpoints are not enabled"
    elif step == 0:
        saved = "nothing was trained, so nothing was saved"
    name = signal.Signals(signal_number).name
    raise Interrupted(signal_number, f"stopped by {name} after step {step}; {saved}.")

"""Everything a run writes down about itself: metrics to every logger, run.json, the loss curve and the screen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_recipes.batches import Batch
from automodel_recipes.evaluate import EvalMetrics
from automodel_recipes.host_memory import HostMemoryWatch
from automodel_recipes.loggers.console import count, duration, significant
from automodel_recipes.loggers.jsonl import JsonlLogger, read_jsonl
from automodel_recipes.loggers.plot import plot_loss
from automodel_recipes.loggers.trackers import Trackers
from automodel_recipes.phase_times import CHECKPOINT
from automodel_recipes.run_dir import check_writable
from automodel_recipes.run_json import run_record
from automodel_recipes.screen import start_screen
from automodel_recipes.step_meter import StepMeter
from automodel_recipes.text_files import write_json, write_text
from automodel_recipes.train_step import StepMetrics

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


class RunRecords:
    """Writes on rank 0; on other ranks it only takes part in the reductions."""

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        self.is_main: bool = recipe.parallel.is_main
        self.log_every = int(recipe.config.get("step_scheduler.log_every_steps", 1))
        self._host_memory = HostMemoryWatch(float(recipe.config.get("monitoring.host_growth_warning_gib", 4.0)))
        self._jsonl: JsonlLogger | None = None
        self._last_val: float | None = None
        self._trackers = Trackers()
        if self.is_main:
            check_writable(recipe.run_dir.path)
            self._jsonl = JsonlLogger(recipe.run_dir.metrics)

    # Moments of a run.

    def start(self) -> None:
        """The start screen, and run.json with everything that is known before the first step."""
        start_screen(self.r)
        self.meter = StepMeter(self.r)
        if self.is_main and not self.r.options.dry_run:
            self._trackers = Trackers.from_config(self.r.config, self.r.run_dir.path, say=self.r.console.fact)
        self._write_run_json(status="running")
        if self.is_main:
            write_text(self.r.run_dir.path / "config.yaml", self.r.config.to_yaml())

    def resumed(self, source: Path | str) -> None:
        """Say what the run goes on from."""
        step = self.r.step_scheduler.step
        self.r.console.fact("resume", f"step {step}, epoch {self.r.step_scheduler.epoch}, from {source}")
        self.event("resume", step=step, source=str(source))

    def finish(self, summary: "TrainSummary") -> None:
        """Final weights, loss curve, run.json, and the end screen."""
        from automodel_recipes.screen import end_screen

        with self.r.phases(CHECKPOINT):
            final = None if self.r.options.dry_run else self.r.checkpointer.write_final()
        summary.phases = self.r.phases.totals()
        if self.is_main and self._jsonl is not None:
            plot_loss(read_jsonl(self._jsonl.path), self.r.run_dir.path / "loss.png")
        end = {"exit_code": 0, "reason": summary.stop_reason or "the schedule is complete"}
        self._write_run_json(status="finished", summary=summary, end=end)
        self._trackers.close(exit_code=0)
        self._write_report()
        end_screen(self.r, summary, final)

    def ended(self, error: BaseException) -> None:
        """Note in run.json and in the trackers why a run ended early."""
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        status = "interrupted" if code > 128 else "failed"
        reason = f"{type(error).__name__}: {error}"
        self.event("end", status=status, reason=reason)
        self._write_run_json(status=status, end={"exit_code": code, "reason": reason})
        self._trackers.close(exit_code=code)

    # Rows.

    def train_row(
        self, metrics: StepMetrics, micro_batches: list[Batch], *, started: float, waited: float
    ) -> dict[str, Any] | None:
        """Reduce, log and return a step's numbers; None between logged steps.

        Args:
            metrics, micro_batches: of the step that is over.
            started: monotonic seconds at which its data were asked for.
            waited: seconds until they were there.
        """
        scheduler = self.r.step_scheduler
        self.meter.add(metrics, micro_batches, waited=waited)
        if scheduler.step % self.log_every and not scheduler.is_last_step:
            self.meter.pause(started=started)
            return None
        row = {**self.meter.row(metrics, started=started), **self.r.phases.row()}
        self._log("train", "train", row)
        if (warning := self._host_memory.observe(row["step"], row["host_memory_gib"])) is not None:
            self.event("warning", message=warning)
        self._print_step(row)
        return row

    def val_row(self, name: str, metrics: EvalMetrics) -> None:
        """Log one validation set's result."""
        row = {"step": self.r.step_scheduler.step, "name": name, "loss": metrics.loss, **metrics.extra()}
        if name == "val":
            self._last_val = metrics.loss
        self._log(
            "val", name if name == "val" else f"val_{name}", {**row, "num_label_tokens": metrics.num_label_tokens}
        )
        extra = ", ".join(f"{key} {significant(value)}" for key, value in metrics.extra().items())
        self.r.console.fact("check", f"{name} loss at step {row['step']}: {significant(metrics.loss)}, {extra}")

    def event(self, kind: str, **row: Any) -> None:
        """Log something that happened between steps; numbers reach the trackers too."""
        self._log(kind, kind, {"step": self.r.step_scheduler.step, **row})

    def close(self) -> None:
        """Close the files."""
        if self._jsonl is not None:
            self._jsonl.close()

    def _log(self, kind: str, prefix: str, row: dict[str, Any]) -> None:
        if self._jsonl is not None:
            self._jsonl.log(kind, row)
        self._trackers.log(prefix, row)

    def _print_step(self, row: dict[str, Any]) -> None:
        step, total = row["step"], self.r.step_scheduler.total_steps
        if step not in (1, total) and step % max(1, total // 20):
            return
        mfu = "" if row["mfu_percent"] is None else f" MFU {row['mfu_percent']:.1f} %"
        speed = f"{count(row['tokens_per_s'])} tok/s ({count(row['label_tokens_per_s'])} supervised){mfu}"
        self.r.console.step(
            step,
            total,
            {
                "loss": f"{row['loss']:.4f}",
                **({"val": f"{self._last_val:.4f}"} if self._last_val is not None else {}),
                "lr": f"{row['lr']:.2e}",
                "gnorm": f"{row['grad_norm']:.3f}",
                "|": speed,
                "mem": f"{row['peak_memory_gib']:.2f} GiB",
                "data": f"{row['data_wait_percent']:.1f} %",
                "eta": duration(row["eta_s"]),
            },
        )

    def _write_report(self) -> None:
        if self.is_main and not self.r.options.dry_run:
            from automodel_recipes.runs.folder import open_run
            from automodel_recipes.runs.report import write_report

            write_report(open_run(self.r.run_dir.path), self.r.run_dir.path / "report.html")

    def _write_run_json(
        self, *, status: str, summary: "TrainSummary | None" = None, end: dict[str, Any] | None = None
    ) -> None:
        if self.is_main:
            record = run_record(self.r, status=status, summary=summary, end=end)
            write_json(self.r.run_dir.path / "run.json", record)

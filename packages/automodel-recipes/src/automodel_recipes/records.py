"""Everything a run writes down about itself: metrics, run.json, the loss curve and the screen."""

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.batches import Batch, count_tokens
from automodel_recipes.evaluate import EvalMetrics
from automodel_recipes.host_memory import HostMemoryWatch, host_memory_gib, peak_memory_gib
from automodel_recipes.loggers.console import count, duration, significant
from automodel_recipes.loggers.jsonl import JsonlLogger, read_jsonl
from automodel_recipes.loggers.plot import plot_loss
from automodel_recipes.run_dir import check_writable
from automodel_recipes.screen import start_screen
from automodel_recipes.text_files import write_json, write_text
from automodel_recipes.train_step import StepMetrics
from automodel_recipes.validation.provenance import provenance

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "datasets",
    "triton",
    "automodel-core",
    "automodel-parallel",
    "automodel-kernels",
    "automodel-data",
    "automodel-ckpt",
    "automodel-recipes",
)


class RunRecords:
    """Writes on rank 0; on other ranks it only takes part in the reductions."""

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        self.is_main: bool = recipe.parallel.is_main
        self.log_every = int(recipe.config.get("step_scheduler.log_every_steps", 1))
        self.num_label_tokens: torch.Tensor | int = 0  # on the device between logged steps
        self._host_memory = HostMemoryWatch(float(recipe.config.get("monitoring.host_growth_warning_gib", 4.0)))
        self._jsonl: JsonlLogger | None = None
        self._epoch_start = time.monotonic()
        if self.is_main:
            check_writable(recipe.run_dir.path)
            self._jsonl = JsonlLogger(recipe.run_dir.metrics)

    # Moments of a run.

    def start(self) -> None:
        """The start screen, and run.json with everything that is known before the first step."""
        start_screen(self.r)
        self._first_step = self.r.step_scheduler.step
        self._loop_start = time.monotonic()
        self._write_run_json(status="running")
        if self.is_main:
            write_text(self.r.run_dir.path / "config.yaml", self.r.config.to_yaml())

    def resumed(self, source: Path) -> None:
        """Say what the run goes on from."""
        step = self.r.step_scheduler.step
        self.r.console.fact("resume", f"step {step}, epoch {self.r.step_scheduler.epoch}, from {source}")
        self.event("resume", step=step, source=str(source))

    def finish(self, summary: "TrainSummary") -> None:
        """Final weights, loss curve, run.json, and the end screen."""
        from automodel_recipes.screen import end_screen

        final = None if self.r.options.dry_run else self.r.checkpointer.write_final()
        if self.is_main and self._jsonl is not None:
            plot_loss(read_jsonl(self._jsonl.path), self.r.run_dir.path / "loss.png")
        self._write_run_json(status="finished", summary=summary)
        end_screen(self.r, summary, final)

    def ended(self, error: BaseException) -> None:
        """Note in run.json why a run ended early."""
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        status = "interrupted" if code > 128 else "failed"
        reason = f"{type(error).__name__}: {error}"
        self.event("end", status=status, reason=reason)
        self._write_run_json(status=status, end={"exit_code": code, "reason": reason})

    # Rows.

    def train_row(
        self, metrics: StepMetrics, micro_batches: list[Batch], *, seconds: float, waited: float
    ) -> dict[str, Any] | None:
        """Reduce, log and return a step's numbers; None between logged steps. The loop's only host sync."""
        r = self.r
        step = r.step_scheduler.step
        self.num_label_tokens = self.num_label_tokens + metrics.num_label_tokens
        if step % self.log_every and not r.step_scheduler.is_last_step:
            return None
        tokens = torch.tensor(sum(count_tokens(batch) for batch in micro_batches), device=r.device)
        num_tokens = int(r.parallel.sum_over_data(tokens))
        row: dict[str, Any] = {
            "step": step,
            "epoch": r.step_scheduler.epoch,
            "loss": float(r.parallel.sum_over_loss_ranks(metrics.loss)),
            "grad_norm": float(metrics.grad_norm),
            "lr": metrics.learning_rate,
            "num_label_tokens": int(metrics.num_label_tokens),
            "num_tokens": num_tokens,
            "step_time_s": round(seconds, 4),
            "tokens_per_s": round(num_tokens / seconds, 1),
            "label_tokens_per_s": round(int(metrics.num_label_tokens) / seconds, 1),
            "data_wait_percent": round(100 * waited / seconds, 1),
            "peak_memory_gib": round(peak_memory_gib(r.device), 3),
            "host_memory_gib": round(host_memory_gib(), 3),
        }
        if (warning := self._host_memory.observe(step, row["host_memory_gib"])) is not None:
            self.event("warning", message=warning)
        if self._jsonl is not None:
            self._jsonl.log("train", row)
        self._print_step(row)
        return row

    def val_row(self, name: str, metrics: EvalMetrics) -> None:
        """Log one validation set's result."""
        step = self.r.step_scheduler.step
        if self._jsonl is not None:
            self._jsonl.log(
                "val",
                {
                    "step": step,
                    "name": name,
                    "loss": metrics.loss,
                    **metrics.extra(),
                    "num_label_tokens": metrics.num_label_tokens,
                },
            )
        extra = ", ".join(f"{key} {significant(value)}" for key, value in metrics.extra().items())
        self.r.console.fact("check", f"{name} loss at step {step}: {significant(metrics.loss)}, {extra}")

    def event(self, kind: str, **row: Any) -> None:
        """Log something that happened between steps."""
        if self._jsonl is not None:
            self._jsonl.log(kind, {"step": self.r.step_scheduler.step, **row})

    def close(self) -> None:
        """Close the files."""
        if self._jsonl is not None:
            self._jsonl.close()

    def _print_step(self, row: dict[str, Any]) -> None:
        scheduler = self.r.step_scheduler
        step, total = row["step"], scheduler.total_steps
        if step not in (1, total) and step % max(1, total // 20):
            return
        done = max(step - self._first_step, 1)
        eta = (time.monotonic() - self._loop_start) / done * (total - step)
        self.r.console.step(
            step,
            total,
            {
                "loss": f"{row['loss']:.4f}",
                "lr": f"{row['lr']:.2e}",
                "gnorm": f"{row['grad_norm']:.3f}",
                "|": f"{count(row['tokens_per_s'])} tok/s ({count(row['label_tokens_per_s'])} supervised)",
                "mem": f"{row['peak_memory_gib']:.2f} GiB",
                "data": f"{row['data_wait_percent']:.1f} %",
                "eta": duration(eta),
            },
        )

    # run.json

    def _write_run_json(
        self, *, status: str, summary: "TrainSummary | None" = None, end: dict[str, Any] | None = None
    ) -> None:
        if not self.is_main:
            return
        record: dict[str, Any] = {
            "format": 1,
            "status": status,
            "recipe": type(self.r).__name__,
            "command": sys.argv,
            "config": self.r.config.to_dict(raw=True),
            "provenance": {
                row.path: {"value": row.value, "origin": row.origin, "source": row.source}
                for row in provenance(self.r.config)
            },
            "versions": package_versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(self.r.device),
            "world_size": self.r.parallel.world_size,
            "num_label_tokens": int(self.num_label_tokens),
            "end": end or {"exit_code": 0, "reason": "the schedule is complete"} if status == "finished" else end,
        }
        if summary is not None:
            record["summary"] = {
                "steps": summary.steps,
                "seconds": round(summary.seconds, 2),
                "last_loss": summary.last_loss,
                "validation": {name: m.loss for name, m in summary.validation.items()},
                "exact_match": summary.exact_match,
            }
        write_json(self.r.run_dir.path / "run.json", record)


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a run's numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

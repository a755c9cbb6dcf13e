"""A run's memory: estimated before the first step, measured while it runs, compared at the end."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from automodel_recipes.host_memory import peak_memory_gib

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.memory.live import Peak
    from automodel_recipes.plan.estimate import Estimate


class RunMemory:
    """Estimate and measurement of one rank's peak; rank 0 speaks.

    On a GPU the measurement is the allocator's peak. On a CPU it is the peak of live tensor storage where
    ``monitoring.track_memory`` is set; the resident memory of the process, which holds Python and its libraries as
    well, is told beside it.
    """

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        self.estimate: Estimate | None = None
        self.obstacle = ""
        """Why there is no estimate."""
        self._live: Any = None
        self._static: dict[str, int] = {}
        if recipe.config.get("monitoring.track_memory", False) and recipe.device.type == "cpu":
            from automodel_recipes.memory.live import LiveTensors

            self._live = LiveTensors()

    def make_estimate(self) -> None:
        """Trace a step of the longest micro-batch without memory; a failure is a reason, not an error of the run."""
        if not self.r.parallel.is_main:
            self.obstacle = "rank 0 makes the estimate"
            return
        if not self.r.config.get("monitoring.memory_estimate", True):
            self.obstacle = "monitoring.memory_estimate is off"
            return
        from automodel_recipes.plan.make import estimate_batches

        try:
            batch = self.r.train_loader.longest_micro_batch()
            accumulation = self.r.step_scheduler.grad_acc_steps
            pipeline = self.r.parallel.dims.pp > 1
            self.estimate = estimate_batches(
                self.r.config,
                parallel=self.r.parallel,
                micro_batches=lambda _: [batch] * (accumulation if pipeline else 1),
                tokenizer=self.r.tokenizer,
                accumulates=accumulation > 1,
                like_gpu=self.r.device.type != "cpu",
            )
        except Exception as error:  # noqa: BLE001 - training does not need the estimate, whatever stood in its way
            self.obstacle = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around each training step: follow its tensors, where that was asked for."""
        if self._live is None:
            yield
            return
        from automodel_recipes.plan.trace import watched_step

        with watched_step(self.r, self._live) as watched:
            yield
        self._static = watched.static()

    @property
    def measured(self) -> "Peak | None":
        """The peak of live tensors on a CPU; None where they were not followed."""
        return None if self._live is None else self._live.peak()

    def start_line(self) -> str:
        """``estimate 3.21 GiB of 139.8: activations ...``."""
        from automodel_recipes.plan.report import peak_text, size

        if self.estimate is None:
            return f"no estimate: {self.obstacle}"
        peak, room = self.estimate.peak(), self._device_gib()
        of = f" of {room:.1f} GiB" if room else ""
        shape = f"{self.estimate.rows} x {self.estimate.tokens} tokens"
        return f"estimate {size(peak.total)}{of} ({peak_text(peak)}) for {shape}"

    def end_text(self) -> str:
        """``peak 3.30 GiB (estimate -3 %)``."""
        from automodel_recipes.plan.report import size

        total, what = self._measured_bytes()
        if total is None:
            return f"peak {peak_memory_gib(self.r.device):.2f} GiB resident" + self._estimate_beside()
        resident = f", {peak_memory_gib(self.r.device):.2f} GiB resident" if self.r.device.type == "cpu" else ""
        error = ""
        if self.estimate is not None:
            error = f" (estimate {100 * (self.estimate.peak().total / total - 1):+.1f} %)"
        return f"peak {size(total)} {what}{error}{resident}"

    def record(self) -> dict[str, Any]:
        """For run.json, in bytes."""
        measured, what = self._measured_bytes()
        record: dict[str, Any] = {
            "measured_bytes": measured,
            "measured": what,
            "resident_bytes": round(peak_memory_gib(self.r.device) * 2**30) if self.r.device.type == "cpu" else None,
        }
        if self.measured is not None:
            record |= {"measured_parts": dict(self.measured.parts), "measured_static": self._static}
        if self.estimate is None:
            return record | {"estimate_bytes": None, "obstacle": self.obstacle}
        peak = self.estimate.peak()
        return record | {
            "estimate_bytes": peak.total,
            "estimate_parts": dict(peak.parts),
            "estimate_static": dict(self.estimate.static),
        }

    def _measured_bytes(self) -> tuple[int | None, str]:
        if self.r.device.type == "cuda":
            return round(peak_memory_gib(self.r.device) * 2**30), "allocated"
        if self.measured is not None:
            return self.measured.total, "of tensors"
        return None, "not measured; set monitoring.track_memory"

    def _estimate_beside(self) -> str:
        from automodel_recipes.plan.report import size

        return "" if self.estimate is None else f" (tensors by estimate {size(self.estimate.peak().total)})"

    def _device_gib(self) -> float | None:
        import torch

        if self.r.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.r.device).total_memory / 2**30

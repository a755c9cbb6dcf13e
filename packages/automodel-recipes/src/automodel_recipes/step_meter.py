"""A step's numbers: summed on the device between logged steps, read and reduced when a row is due."""

import time
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.batches import Batch, count_tokens
from automodel_recipes.flops import device_peak, model_flops, sequence_lengths
from automodel_recipes.host_memory import host_memory_gib, peak_memory_gib
from automodel_recipes.train_step import StepMetrics

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


class StepMeter:
    """Collects steps and turns them into a row. Reading a row is the loop's only host sync.

    Speeds are over the time spent in steps, from asking for the data to the finished update; validation and saves do
    not count. ``loss``, ``grad_norm`` and ``lr`` are of the row's own step, everything else of all steps since the
    row before.
    """

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        self.flops = model_flops(recipe.unwrapped(), recipe.parallel)
        self.peak = device_peak(recipe.device, given=recipe.config.get("monitoring.peak_tflops"))
        self._logged_label_tokens = 0
        self._first_step = recipe.step_scheduler.step
        self._busy_s = 0.0
        self._clear()

    def _clear(self) -> None:
        self._num_steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._num_tokens, self._squared_lengths = 0, 0
        self._label_tokens: torch.Tensor | None = None

    @property
    def total_label_tokens(self) -> int:
        """Supervised tokens trained on since the start or the resume."""
        return self._logged_label_tokens + int(self._label_tokens if self._label_tokens is not None else 0)

    def add(self, metrics: StepMetrics, micro_batches: list[Batch], *, waited: float) -> None:
        """Count a step; nothing is read from the device."""
        self._num_steps += 1
        self._waited += waited
        for batch in micro_batches:
            self._num_tokens += count_tokens(batch)
            self._squared_lengths += sum(length * length for length in sequence_lengths(batch))
        labels = metrics.num_label_tokens
        self._label_tokens = labels if self._label_tokens is None else self._label_tokens + labels

    def pause(self, *, started: float) -> None:
        """The step that began at ``started`` (monotonic seconds) is not logged: its time counts for the next row."""
        self._seconds += time.monotonic() - started

    def row(self, metrics: StepMetrics, *, started: float) -> dict[str, Any]:
        """The row of the step that began at ``started``; every rank calls it."""
        r = self.r
        loss, grad_norm = float(r.parallel.sum_over_loss_ranks(metrics.loss)), float(metrics.grad_norm)
        assert self._label_tokens is not None, "add() comes before row()"
        num_label_tokens = int(self._label_tokens)
        counts = torch.tensor([self._num_tokens, self._squared_lengths], dtype=torch.int64, device=r.device)
        num_tokens, squared_lengths = r.parallel.sum_over_data(counts).tolist()
        self.pause(started=started)
        seconds, num_steps, waited = max(self._seconds, 1e-9), self._num_steps, self._waited
        self._logged_label_tokens += num_label_tokens
        self._busy_s += seconds
        self._clear()
        return {
            "step": r.step_scheduler.step,
            "epoch": r.step_scheduler.epoch,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": metrics.learning_rate,
            "num_label_tokens": num_label_tokens,
            "num_tokens": num_tokens,
            "step_time_s": round(seconds / num_steps, 4),
            "tokens_per_s": round(num_tokens / seconds, 1),
            "label_tokens_per_s": round(num_label_tokens / seconds, 1),
            "mfu_percent": self._mfu_percent(num_tokens, squared_lengths, seconds),
            "data_wait_percent": round(100 * waited / seconds, 1),
            "peak_memory_gib": round(peak_memory_gib(r.device), 3),
            "host_memory_gib": round(host_memory_gib(), 3),
            "eta_s": round(self._eta(), 3),
        }

    def _mfu_percent(self, num_tokens: int, squared_lengths: int, seconds: float) -> float | None:
        if self.peak is None:
            return None
        achieved = self.flops.of(num_tokens, squared_lengths) / seconds / self.r.parallel.world_size
        return self.peak.percent(achieved)

    def _eta(self) -> float:
        scheduler = self.r.step_scheduler
        return self._busy_s / max(scheduler.step - self._first_step, 1) * (scheduler.total_steps - scheduler.step)

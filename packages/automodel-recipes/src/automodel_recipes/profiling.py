"""Profile a few steps with torch's profiler, and record the CUDA allocator's history."""

import gzip
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_recipes.errors import UnusableInputError

logger = logging.getLogger(__name__)

_TABLE_ROWS = 40


class StepProfiler:
    """Records steps ``start_step .. start_step + num_steps - 1`` on the ranks asked for.

    Writes ``RUN/profile/steps-A-B-rank-R.trace.json.gz`` (open in Perfetto or chrome://tracing), ``.txt`` (operators
    by time of their own) and, with ``memory_snapshot``, ``.memory.pickle`` for pytorch.org/memory_viz.

    Args:
        start_step: first step to record; by default the third, when caches and compilation have settled.
        num_steps: steps to record.
        ranks: ranks that record.
        record_shapes, with_stack, profile_memory: of ``torch.profiler.profile``.
        memory_snapshot: also record the history of the CUDA allocator.
    """

    def __init__(
        self,
        directory: Path,
        device: torch.device,
        *,
        rank: int = 0,
        start_step: int = 3,
        num_steps: int = 2,
        ranks: tuple[int, ...] = (0,),
        record_shapes: bool = True,
        with_stack: bool = False,
        profile_memory: bool = False,
        memory_snapshot: bool = False,
    ) -> None:
        if memory_snapshot and device.type != "cuda":
            raise UnusableInputError(
                f"profiler.memory_snapshot on {device.type}: it records CUDA memory alone. Use profiler.profile_memory."
            )
        if start_step < 1 or num_steps < 1:
            raise UnusableInputError(
                f"profiler.start_step={start_step}, num_steps={num_steps}: both must be >= 1. Use 3 and 2."
            )
        self._first, self._last = start_step, start_step + num_steps - 1
        self._here = rank in ranks
        self._device, self._snapshot = device, memory_snapshot
        self._stem = directory / f"steps-{self._first}-{self._last}-rank-{rank}"
        self._keys = {"record_shapes": record_shapes, "with_stack": with_stack, "profile_memory": profile_memory}
        self._profile: Any = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Surround one training step."""
        if self._here and self._profile is None and step == self._first:
            self._start()
        if self._profile is None:
            yield
            return
        with torch.profiler.record_function(f"step {step}"):
            yield
        if step >= self._last:
            self.close()

    def _start(self) -> None:
        if self._snapshot:
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds, **self._keys)
        self._profile.start()

    def close(self) -> None:
        """Write what was recorded; a run that ends within the window writes what it has."""
        if self._profile is None:
            return
        profile, self._profile, self._here = self._profile, None, False
        profile.stop()
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        trace = self._stem.with_suffix(".trace.json")
        profile.export_chrome_trace(str(trace))
        with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        trace.unlink()
        by = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=_TABLE_ROWS)
        self._stem.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
        if self._snapshot:
            torch.cuda.memory._dump_snapshot(str(self._stem.with_suffix(".memory.pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        logger.info("profile of steps %d to %d: %s.*", self._first, self._last, self._stem)


class NoProfiler:
    """Stands where no ``profiler`` section is."""

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Nothing."""
        yield

    def close(self) -> None:
        """Nothing."""


def build_profiler(config: ConfigNode, directory: Path, device: torch.device, *, rank: int) -> Any:
    """The profiler of the ``profiler`` section.

    Raises: UnusableInputError: a window that cannot be, or a memory snapshot without CUDA.
    """
    section = config.get("profiler")
    if section is None or not section.get("enabled", True):
        return NoProfiler()
    keys = section.to_dict()
    keys.pop("enabled", None)
    if "ranks" in keys:
        keys["ranks"] = tuple(keys["ranks"])
    return StepProfiler(directory, device, rank=rank, **keys)

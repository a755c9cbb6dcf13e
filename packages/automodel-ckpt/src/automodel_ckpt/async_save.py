"""Save in the background: training waits only while the state is copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.capture import Captured, capture
from automodel_ckpt.coordination import make_coordinator
from automodel_ckpt.errors import SaveFailed
from automodel_ckpt.planning import assign, offer
from automodel_ckpt.retention import Keep
from automodel_ckpt.saving import check_metrics, save_captured


class AsyncSaver:
    """Saves one checkpoint at a time in a thread; it is published as soon as its last byte is durable.

    Each rank holds a copy of what it would write, in memory that is reused from save to save (pinned for CUDA).
    What fails in the background is raised by the next `save`, `poll` or `close`, on every rank.

    Args:
        root: as for `automodel_ckpt.save`.
        keep, trainable_only, filter, process_group, deadline_s, threads: likewise.

    Use as a context manager, or call `close`: leaving without an error waits for the save in flight.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        keep: Keep | None = None,
        trainable_only: bool = False,
        filter: Callable[[str], bool] | None = None,
        process_group: Any = None,
        deadline_s: float = 600.0,
        threads: int = 2,
    ) -> None:
        self.root, self.keep, self.threads, self.deadline_s = root, keep or Keep(), threads, deadline_s
        self.stall_s = 0.0
        """Seconds for which the last `save` held the caller up."""
        self._filter, self._trainable_only = filter, trainable_only
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckpt-async")
        self._flight: Future[Path] | None = None
        self._coordinator = make_coordinator(process_group, deadline_s=deadline_s)

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        metrics: Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy the state and return; write it in the background. Waits first for a save that is still in flight.

        Raises: SaveFailed and others of `automodel_ckpt.save`: also for the save before this one.
        """
        self.wait()
        began = time.monotonic()
        rank = self._coordinator.rank
        sections = capture(state, rank=rank, keep=self._filter, trainable_only=self._trainable_only)
        copies = {name: self._copy(name, section) for name, section in sections.items()}
        self.stall_s = time.monotonic() - began
        arguments = {"step": step, "metrics": check_metrics(metrics or {}), "info": dict(info or {})}
        self._flight = self._pool.submit(self._write, copies, arguments)

    def _copy(self, name: str, section: Captured) -> Captured:
        return replace(section, tensors={key: self._snapshot((name, key), t) for key, t in section.tensors.items()})

    def _snapshot(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        """A CPU copy of a tensor, or of the local part of a DTensor, in a buffer of its own."""
        from torch.distributed.tensor import DTensor

        source = tensor.detach()
        local = source.to_local() if isinstance(source, DTensor) else source
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
            self._buffers[key] = buffer
        buffer.copy_(local)
        if not isinstance(source, DTensor):
            return buffer
        return DTensor.from_local(
            buffer, source.device_mesh, source.placements, run_check=False, shape=source.shape, stride=source.stride()
        )

    def _write(self, sections: dict[str, Captured], arguments: dict[str, Any]) -> Path:
        rank, step = self._coordinator.rank, arguments["step"]
        plan = self._coordinator.ballot("plan of a save", lambda: offer(sections, step, rank=rank), assign)
        return save_captured(
            self.root, sections, plan, self._coordinator, keep=self.keep, threads=self.threads, **arguments
        )

    def poll(self) -> Path | None:
        """The path of the last save once it is published; None while it is in flight, or if there is none."""
        return self._flight.result() if self._flight is not None and self._flight.done() else None

    def wait(self, timeout_s: float | None = None) -> Path | None:
        """Wait for the save in flight and return its path.

        Raises: SaveFailed: it failed, or is not done after ``timeout_s`` (default: the deadline of three ballots).
        """
        if self._flight is None:
            return None
        limit = 4 * self.deadline_s if timeout_s is None else timeout_s
        flight = self._flight
        try:
            path = flight.result(limit)
        except TimeoutError as error:
            if flight.done():
                raise
            raise SaveFailed(f"the save into {self.root} is not done after {limit:g} s; it goes on.") from error
        finally:
            if flight.done():
                self._flight = None
        return path

    def close(self, timeout_s: float | None = None) -> Path | None:
        """Wait for the save in flight, end the thread, and free the buffers."""
        try:
            return self.wait(timeout_s)
        finally:
            self._pool.shutdown(wait=False)
            self._buffers.clear()

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._pool.shutdown(wait=False)

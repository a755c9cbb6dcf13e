"""Micro-batches of a stream: windows on it, shuffled block by block, resumed by reading on from the block's start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from automodel_data.errors import DataError
from automodel_data.loader import BatchPlan, filler
from automodel_data.order import permuted
from automodel_data.packing import PackedStream

_FIXED = ("num_samples", "global_batch_size", "seed", "shuffle", "shuffle_block")


class StreamLoader:
    """What `TrainLoader` is for a map-style dataset: the rest of the epoch, then the next one; state of integers.

    Rows are permuted within blocks of ``shuffle_block`` as a function of (seed, epoch, block). Every rank encodes the
    stream and keeps its share, so that a row that is left out is left out on all of them; ``num_workers`` processes
    encode ahead of training. There is no ``len``: how many rows are usable is not known beforehand.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        plan: BatchPlan,
        collate_fn: Callable,
        shuffle_block: int,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if shuffle_block < 1:
            raise DataError(f"shuffle_block={shuffle_block}: at least 1 row is needed.")
        self.dataset, self.plan, self._collate_fn, self._block = dataset, plan, collate_fn, shuffle_block
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``."""
        self.epoch = int(epoch)
        self._position: dict[str, Any] = {"cursor": 0, "block": 0, "in_block": 0, "source": dict(self.dataset.start())}
        self._finished = False

    def __iter__(self) -> Iterator[Any]:
        if self._finished:
            self.set_epoch(self.epoch + 1)
        rows: Iterator[tuple[dict[str, Any], dict[str, Any]]] = self._rows()
        while window := list(islice(rows, self.plan.global_batch_size)):
            end = window[-1][1]
            following = next(rows, None)
            batches = self._micro_batches([row for row, _ in window])
            for i, batch in enumerate(batches):
                if i == len(batches) - 1:
                    self._position = {**end, "cursor": self._position["cursor"] + len(window)}
                    self._finished = following is None
                yield self._batch(batch)
            if following is None:
                break
            rows = chain([following], rows)
        if self._position["cursor"] == 0:
            raise DataError(f"no row of {self.dataset.name} can be trained on. Check the format and the mask.")
        self.set_epoch(self.epoch + 1)

    def longest_micro_batch(self, *, most_rows: int = 512) -> Any:
        """A micro-batch of the longest of the first rows, to see what a large one takes; the position does not move."""
        rows = [row for row, _ in islice(self.dataset.rows(self.dataset.start()), most_rows)]
        units = self.dataset.pack_block(rows) if isinstance(self.dataset, PackedStream) else rows
        longest = sorted(units, key=lambda row: -len(row["input_ids"]))[: self.plan.local_batch_size]
        return self._collate_fn(longest)

    def _batch(self, rows: list[dict[str, Any]]) -> Any:
        batch = self._collate_fn(rows)
        if not self._pin_memory:
            return batch
        return {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows in training order from the current position, each with the position behind it."""
        block, skip, source = (self._position[key] for key in ("block", "in_block", "source"))
        stream = self.dataset.rows(source, num_workers=self._num_workers)
        while pairs := list(islice(stream, self._block)):
            rows = [row for row, _ in pairs]
            # Packs are formed of a whole block and then permuted: best fit sorts by length.
            units = self.dataset.pack_block(rows) if isinstance(self.dataset, PackedStream) else rows
            order = np.arange(len(units))
            if self.plan.shuffle:
                seed = self.plan.seed * 1_000_003 + block
                order = permuted(order, num_samples=len(units), seed=seed, epoch=self.epoch)
            for done, i in enumerate(order[skip:].tolist(), start=skip + 1):
                yield units[i], {"block": block, "in_block": done, "source": source}
            block, skip, source = block + 1, 0, pairs[-1][1]

    def _micro_batches(self, window: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        per_rank = -(-len(window) // self.plan.dp_size)
        start = self.plan.dp_rank * per_rank
        rows = window[start : start + per_rank]
        rows = rows + [filler(window[0])] * (per_rank - len(rows))
        size = self.plan.local_batch_size
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def state_dict(self) -> dict[str, Any]:
        """Consumed samples and where the current block begins; a half-consumed window counts as not begun."""
        plan, known = self.plan, self.dataset.num_source_rows
        fixed = {
            "num_samples": -1 if known is None else known,
            "global_batch_size": plan.global_batch_size,
            "seed": plan.seed,
            "shuffle": int(plan.shuffle),
            "shuffle_block": self._block,
        }
        if self._finished:
            start = {"cursor": 0, "block": 0, "in_block": 0, "source": dict(self.dataset.start())}
            return {"epoch": self.epoch + 1, **start, **fixed}
        return {"epoch": self.epoch, **self._position, **fixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the consumed samples. Raises: DataError: the order would not be the same."""
        mine = self.state_dict()
        for key in _FIXED:
            if int(state[key]) != mine[key]:
                raise DataError(
                    f"the saved data position has {key}={state[key]} but this loader has {mine[key]}: the sample order "
                    "differs, so the position has no meaning here. Restore the setting, or start the data afresh."
                )
        self.set_epoch(int(state["epoch"]))
        self._position = {key: state[key] for key in self._position}

"""Micro-batches of a map-style dataset in an order that resumes exactly, on any number of ranks and workers.

A *window* is one global batch: consecutive entries of the epoch's order. The order depends on (seed, epoch) alone, so
world size, workers and the split into micro-batches never change which samples form a global batch. State is a few
integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from automodel_data.errors import DataError
from automodel_data.order import permuted

IGNORE_INDEX = -100
_FILLER_ID = -1


@dataclass(frozen=True)
class BatchPlan:
    """Which samples each rank sees in which micro-batch: pure arithmetic on (epoch, window)."""

    num_samples: int
    global_batch_size: int
    local_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch_size", "local_batch_size", "dp_size"):
            if getattr(self, name) < 1:
                what = "the dataset has no rows" if name == "num_samples" else f"{name}={getattr(self, name)}"
                raise DataError(f"{what}: at least 1 is needed. Check the dataset and the batch sizes.")
        if not 0 <= self.dp_rank < self.dp_size:
            raise DataError(f"dp_rank={self.dp_rank} with dp_size={self.dp_size}: it must lie in [0, dp_size).")

    @property
    def windows_per_epoch(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def micro_batches_in(self, window: int) -> int:
        """Micro-batches that every rank takes from ``window``; the last window of an epoch may have fewer."""
        return -(-self._rows_per_rank(window) // self.local_batch_size)

    @property
    def micro_batches_per_epoch(self) -> int:
        last = self.windows_per_epoch - 1
        return last * self.micro_batches_in(0) + self.micro_batches_in(last)

    def window_size(self, window: int) -> int:
        return min(self.global_batch_size, self.num_samples - window * self.global_batch_size)

    def _rows_per_rank(self, window: int) -> int:
        return -(-self.window_size(window) // self.dp_size)

    def window(self, epoch: int, window: int) -> np.ndarray:
        """Sample indices of one global batch, in order."""
        start = window * self.global_batch_size
        positions = np.arange(start, start + self.window_size(window), dtype=np.int64)
        if not self.shuffle:
            return positions
        return permuted(positions, num_samples=self.num_samples, seed=self.seed, epoch=epoch)

    def rank_rows(self, epoch: int, window: int) -> list[tuple[int, bool]]:
        """This rank's ``(sample index, is_filler)`` of one window; fillers even out the ranks."""
        samples, per_rank = self.window(epoch, window), self._rows_per_rank(window)
        start = self.dp_rank * per_rank
        rows = [(int(i), False) for i in samples[start : start + per_rank]]
        return rows + [(int(samples[0]), True)] * (per_rank - len(rows))

    def micro_batches(self, epoch: int, *, start: int = 0) -> Iterator[list[tuple[int, bool]]]:
        """This rank's micro-batches of an epoch, from micro-batch number ``start`` on."""
        window, skip = divmod(start, self.micro_batches_in(0))
        while window < self.windows_per_epoch:
            rows = self.rank_rows(epoch, window)
            parts = [rows[i : i + self.local_batch_size] for i in range(0, len(rows), self.local_batch_size)]
            yield from parts[skip:]
            window, skip = window + 1, 0


@dataclass(frozen=True)
class _EpochBatches:
    """The batch sampler of one epoch: computed window by window, so that a long epoch costs no memory."""

    plan: BatchPlan
    epoch: int
    start: int

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        return self.plan.micro_batches(self.epoch, start=self.start)

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch - self.start


class NumberedRows:
    """A dataset keyed by ``(index, is_filler)``: adds the sample id, and takes the labels out of filler rows."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, bool]) -> dict[str, Any]:
        index, is_filler = key
        row = {"sample_id": index, **self.dataset[index]}
        return filler(row) if is_filler else row


def filler(row: dict[str, Any]) -> dict[str, Any]:
    """A copy of a row that trains nothing: every label ignored, sample ids -1."""
    ids = row["sample_id"]
    empty = [_FILLER_ID] * len(ids) if isinstance(ids, list) else _FILLER_ID
    return {**row, "labels": [IGNORE_INDEX] * len(row["labels"]), "sample_id": empty}


class TrainLoader:
    """Yields one rank's micro-batches, epoch after epoch; built by `build_dataloader`.

    Iterating gives the rest of the current epoch and then advances ``epoch``. ``len`` is micro-batches per epoch and
    rank. ``state_dict`` is a handful of integers that count *consumed* samples, whatever the workers have prefetched.
    Gradients of a half-accumulated window are not part of it, so a state taken inside a window resumes at the window's
    start.
    """

    def __init__(
        self, dataset: Any, *, plan: BatchPlan, collate_fn: Callable, num_workers: int, pin_memory: bool
    ) -> None:
        self.dataset, self.plan = dataset, plan
        self.epoch = 0
        self._consumed = 0  # micro-batches handed out in this epoch
        self.collate_fn, self.num_workers, self.pin_memory = collate_fn, num_workers, pin_memory

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch

    @property
    def batch_size(self) -> int:
        return self.plan.local_batch_size

    def __iter__(self) -> Iterator[Any]:
        if self._consumed >= len(self):
            self.set_epoch(self.epoch + 1)
        batches = _torch_loader(
            self.dataset,
            batches=_EpochBatches(self.plan, self.epoch, self._consumed),
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            seed=self.plan.seed,
        )
        for batch in batches:
            self._consumed += 1
            yield batch
        self.set_epoch(self.epoch + 1)

    def longest_micro_batch(self, *, most_rows: int = 2000) -> Any:
        """A micro-batch of the longest rows, to see what the largest one takes; the position does not move.

        Args:
            most_rows: rows to read where the dataset does not know its ``lengths``.
        """
        lengths = getattr(self.dataset, "lengths", None)
        if lengths is None:
            lengths = [len(self.dataset[i]["input_ids"]) for i in range(min(len(self.dataset), most_rows))]
        longest = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")[: self.plan.local_batch_size]
        rows = NumberedRows(self.dataset)
        return self.collate_fn([rows[int(i), False] for i in longest])

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``."""
        self.epoch, self._consumed = int(epoch), 0

    def state_dict(self) -> dict[str, int]:
        plan = self.plan
        epoch, window = self.epoch, self._consumed // plan.micro_batches_in(0)
        if self._consumed >= len(self):
            epoch, window = epoch + 1, 0
        return {
            "epoch": epoch,
            "cursor": window * plan.global_batch_size,
            "num_samples": plan.num_samples,
            "global_batch_size": plan.global_batch_size,
            "seed": plan.seed,
            "shuffle": int(plan.shuffle),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the samples that ``state`` counts as consumed; world size and workers may differ.

        Raises: DataError: the order would not be the same (another seed, global batch size, shuffle or number of rows).
        """
        mine = self.state_dict()
        for key in ("num_samples", "global_batch_size", "seed", "shuffle"):
            if int(state[key]) != mine[key]:
                raise DataError(
                    f"the saved data position has {key}={state[key]} but this loader has {mine[key]}: the sample order "
                    "differs, so the position has no meaning here. Restore the setting, or start the data afresh."
                )
        self.set_epoch(int(state["epoch"]))
        self._consumed = int(state["cursor"]) // self.plan.global_batch_size * self.plan.micro_batches_in(0)


class EvalLoader:
    """Every row exactly once over all ranks, in order, with the same number of batches on each rank; stateless."""

    def __init__(
        self, dataset: Any, *, plan: BatchPlan, collate_fn: Callable, num_workers: int, pin_memory: bool
    ) -> None:
        self.dataset, self.plan = dataset, plan
        self.collate_fn, self.num_workers, self.pin_memory = collate_fn, num_workers, pin_memory

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch

    def row_by_row(self) -> EvalLoader:
        """The same rows in batches of one."""
        plan = replace(self.plan, global_batch_size=self.plan.dp_size, local_batch_size=1)
        return EvalLoader(
            self.dataset,
            plan=plan,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )

    def __iter__(self) -> Iterator[Any]:
        yield from _torch_loader(
            self.dataset,
            batches=_EpochBatches(self.plan, epoch=0, start=0),
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            seed=0,
        )


def _torch_loader(
    dataset: Any, *, batches: _EpochBatches, collate_fn: Callable, num_workers: int, pin_memory: bool, seed: int
) -> DataLoader:
    # A generator of its own: without one, each iterator draws a seed from torch's global generator, and dropout after a
    # resume would differ from the uninterrupted run.
    return DataLoader(
        NumberedRows(dataset),
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
    )


def build_dataloader(
    dataset: Any,
    *,
    collate_fn: Callable[[list[dict[str, Any]]], Any],
    global_batch_size: int,
    local_batch_size: int,
    dp_rank: int = 0,
    dp_size: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    num_workers: int = 0,
    pin_memory: bool = False,
    shuffle_block: int | None = None,
) -> Any:
    """A resumable loader of one rank's micro-batches: a `TrainLoader`, or a `StreamLoader` for a streaming dataset.

    Args:
        dataset: ``len()`` and ``dataset[i] -> {"input_ids": list[int], "labels": list[int], ...}``, or a streaming
            dataset.
        collate_fn: list of rows -> batch, such as `automodel_data.default_collater`. Rows carry ``sample_id``.
        global_batch_size: rows of one optimizer step over all ranks.
        local_batch_size: rows of one micro-batch on one rank.
        dp_rank, dp_size: this rank and the number of data ranks.
        seed: with the epoch, names the order.
        shuffle: False keeps the dataset's order.
        num_workers: worker processes; never changes the order. Of a stream they encode rows ahead of training.
        pin_memory: copy batches to page-locked memory.
        shuffle_block: rows of a stream that are shuffled among themselves, 4096 where left out.

    Raises: DataError: an empty dataset, a size below 1, or ``shuffle_block`` for a dataset that is shuffled whole.
    """
    is_stream = hasattr(dataset, "num_source_rows")
    num_samples = _rows_of_stream(dataset) if is_stream else len(dataset)
    plan = BatchPlan(
        num_samples=num_samples,
        global_batch_size=global_batch_size,
        local_batch_size=local_batch_size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        seed=seed,
        shuffle=shuffle,
    )
    if is_stream:
        from automodel_data.stream_loader import StreamLoader

        return StreamLoader(
            dataset,
            plan=plan,
            collate_fn=collate_fn,
            shuffle_block=4096 if shuffle_block is None else shuffle_block,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
    if shuffle_block is not None:
        raise DataError(
            f"shuffle_block={shuffle_block}: {type(dataset).__name__} has random access and is shuffled whole. Leave "
            "it out; it is for streams."
        )
    return TrainLoader(dataset, plan=plan, collate_fn=collate_fn, num_workers=num_workers, pin_memory=pin_memory)


def _rows_of_stream(dataset: Any) -> int:
    """Rows of a stream for the plan, whose arithmetic on whole epochs no stream uses: 1 where that is not known."""
    return 1 if dataset.num_source_rows is None else dataset.num_source_rows


def build_eval_dataloader(
    dataset: Any,
    *,
    collate_fn: Callable[[list[dict[str, Any]]], Any],
    local_batch_size: int,
    dp_rank: int = 0,
    dp_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> EvalLoader:
    """A loader that covers every row exactly once over the ranks; filler rows have every label ignored."""
    plan = BatchPlan(
        num_samples=len(dataset),
        global_batch_size=local_batch_size * dp_size,
        local_batch_size=local_batch_size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        shuffle=False,
    )
    return EvalLoader(dataset, plan=plan, collate_fn=collate_fn, num_workers=num_workers, pin_memory=pin_memory)

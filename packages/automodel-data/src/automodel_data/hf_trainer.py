"""Our order of samples under ``transformers.Trainer``, and under trainers made from it, such as TRL's ``SFTTrainer``.

The trainer keeps its own loop, counts and checkpoints. It skips to where it stopped by its number of steps, which is
exact here: a step is a window of the order, whatever the number of processes and of loader workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from automodel_data.errors import DataError
from automodel_data.loader import BatchPlan, NumberedRows, TrainLoader

_NOT_FOR_MODELS = ("label_index", "sample_ids")


def use_loader(trainer: Any, loader: TrainLoader) -> None:
    """Make ``trainer`` train on the micro-batches of ``loader``, in its order, and resume there.

    Args:
        trainer: a ``transformers.Trainer`` that is not yet training; its ``train_dataset`` is left unused.
        loader: from `build_dataloader`, with this process's rank; keys that models do not take (``label_index``,
            ``sample_ids``) are left out of its batches.

    Raises: DataError: a stream, or batch sizes that are not those of the trainer's arguments.
    """
    if not isinstance(loader, TrainLoader):
        raise DataError(
            f"use_loader takes the loader of a map-style dataset, not {type(loader).__name__}: a trainer skips by "
            "steps of an epoch of known length. Give streams as `train_dataset`."
        )
    _check_sizes(trainer.args, loader.plan)
    batches = _Batches(
        NumberedRows(loader.dataset),
        batch_sampler=_WindowSampler(loader.plan),
        collate_fn=_WithoutOwnKeys(loader.collate_fn),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )
    trainer.get_train_dataloader = lambda: batches


class _WindowSampler:
    """This rank's micro-batches of one epoch.

    A trainer that resumes wraps it into one that skips, and sets the epoch on what that wraps.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan, self._epoch = plan, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        return self._plan.micro_batches(self._epoch)

    def __len__(self) -> int:
        return self._plan.micro_batches_per_epoch


class _Batches(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class _WithoutOwnKeys:
    """A collate function whose batches a model's forward takes as they are; pickles with what it wraps."""

    def __init__(self, collate_fn: Callable[[Any], dict[str, Any]]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, rows: Any) -> dict[str, Any]:
        return {key: value for key, value in self._collate_fn(rows).items() if key not in _NOT_FOR_MODELS}


def _check_sizes(args: Any, plan: BatchPlan) -> None:
    accumulation = -(-plan.global_batch_size // (plan.local_batch_size * plan.dp_size))
    pairs = {
        "per_device_train_batch_size": (args.per_device_train_batch_size, plan.local_batch_size, "local_batch_size"),
        "gradient_accumulation_steps": (
            args.gradient_accumulation_steps,
            accumulation,
            "global_batch_size / (local_batch_size x dp_size)",
        ),
        "world size": (args.world_size, plan.dp_size, "dp_size"),
    }
    for name, (theirs, ours, meaning) in pairs.items():
        if theirs != ours:
            raise DataError(
                f"the trainer's {name} is {theirs}, but the loader's {meaning} is {ours}: they must be equal, or a "
                "step would not be a global batch. Build the loader with the trainer's sizes."
            )

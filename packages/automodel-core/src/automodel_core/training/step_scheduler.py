"""When an optimizer step happens, and what happens around it."""

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

MicroBatch = Any


class StepScheduler:
    """Iterate over optimizer steps: each item is the list of this rank's micro-batches of one global batch.

    Inside the loop ``step`` is the number of the current step, from 1, and the ``is_*`` properties speak of it. State
    saved inside the loop resumes *after* that step. Nothing is read ahead, so a data loader's own state, saved at the
    same place, agrees.

    Args:
        global_batch_size: samples per optimizer step over all data ranks. None: from ``grad_acc_steps``.
        local_batch_size: samples per micro-batch.
        dp_size: number of data ranks.
        dataloader: yields one epoch's micro-batches per iteration, ``ceil(global / (local * dp))`` to a full window
            and maybe fewer to the last; goes on from its own position after a resume.
        num_epochs: passes over the data.
        max_steps: optimizer steps in all; whichever of the two ends first ends the run. Needed without ``len``.
        ckpt_every_steps, val_every_steps: cadence in optimizer steps; None is never.
        save_checkpoint_every_epoch: also save at the end of every epoch.
        grad_acc_steps: micro-batches per step, the older way to say ``global_batch_size``.
    Raises: ValueError: sizes that do not divide, contradict each other, or leave the run without an end.
    """

    def __init__(
        self,
        *,
        global_batch_size: int | None = None,
        local_batch_size: int,
        dp_size: int = 1,
        dataloader: Iterable[MicroBatch],
        num_epochs: int = 10,
        max_steps: int | None = None,
        ckpt_every_steps: int | None = None,
        val_every_steps: int | None = None,
        save_checkpoint_every_epoch: bool = True,
        grad_acc_steps: int | None = None,
    ) -> None:
        _at_least_one(
            local_batch_size=local_batch_size, dp_size=dp_size, num_epochs=num_epochs, max_steps=max_steps,
            ckpt_every_steps=ckpt_every_steps, val_every_steps=val_every_steps, grad_acc_steps=grad_acc_steps,
        )  # fmt: skip
        self.grad_acc_steps = _accumulation(global_batch_size, local_batch_size, dp_size, grad_acc_steps)
        self.global_batch_size = self.grad_acc_steps * local_batch_size * dp_size
        self.local_batch_size, self.dp_size = local_batch_size, dp_size
        self.dataloader = dataloader
        self.num_epochs, self.max_steps = num_epochs, max_steps
        self.ckpt_every_steps, self.val_every_steps = ckpt_every_steps, val_every_steps
        self.save_checkpoint_every_epoch = save_checkpoint_every_epoch
        self.step = 0
        self._streamed_epoch = 0
        if max_steps is None and self.steps_per_epoch is None:
            raise ValueError("max_steps=None with a data loader without length: the run has no end. Set max_steps.")

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch; None for a data loader without length."""
        if not isinstance(self.dataloader, Sized):
            return None
        return -(-len(self.dataloader) // self.grad_acc_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        per_epoch = self.steps_per_epoch
        if per_epoch is None:
            assert self.max_steps is not None, "the constructor asks for it"
            return self.max_steps
        by_epochs = per_epoch * self.num_epochs
        return by_epochs if self.max_steps is None else min(self.max_steps, by_epochs)

    @property
    def epoch(self) -> int:
        """Epoch of the current step, from 0; before the first step of a run or after a resume, of the next one."""
        per_epoch = self.steps_per_epoch
        if per_epoch is None:
            return self._streamed_epoch
        return max(self.step - 1, 0) // max(per_epoch, 1)

    @property
    def is_last_step(self) -> bool:
        """Whether the run ends with the current step."""
        return self.step >= self.total_steps

    @property
    def is_epoch_end(self) -> bool:
        """Whether the current step is its epoch's last; never for a data loader without length."""
        per_epoch = self.steps_per_epoch
        return per_epoch is not None and per_epoch > 0 and self.step > 0 and self.step % per_epoch == 0

    @property
    def is_ckpt_step(self) -> bool:
        """Whether to save after the current step: by cadence, at epoch ends, and at the end of a run that saves."""
        by_cadence = self.ckpt_every_steps is not None and self.step % self.ckpt_every_steps == 0
        by_epoch = self.save_checkpoint_every_epoch and self.is_epoch_end
        saves_at_all = self.ckpt_every_steps is not None or self.save_checkpoint_every_epoch
        return self.step > 0 and (by_cadence or by_epoch or (saves_at_all and self.is_last_step))

    @property
    def is_val_step(self) -> bool:
        """Whether to validate after the current step."""
        return self.val_every_steps is not None and self.step > 0 and self.step % self.val_every_steps == 0

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        # A loader that was saved at the end of an epoch may have nothing left of it: one empty pass is no error.
        passes_without_data = 0
        while not self.is_last_step:
            found = False
            for window in self._windows():
                found = True
                self.step += 1
                yield window
                if self.is_last_step:
                    break
            passes_without_data = 0 if found else passes_without_data + 1
            if passes_without_data == 2:
                raise ValueError(
                    f"the data loader yielded nothing in two passes, at step {self.step} of {self.total_steps}: "
                    "every epoch "
                    "needs data. Check the dataset, or lower max_steps."
                )
            self._streamed_epoch += found

    def state_dict(self) -> dict[str, int]:
        """The current step; what was trained on up to here is the data loader's state."""
        return {"step": self.step, "epoch": self.epoch, "streamed_epoch": self._streamed_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after a saved step."""
        self.step = int(state["step"])
        self._streamed_epoch = int(state["streamed_epoch"])

    def _windows(self) -> Iterator[list[MicroBatch]]:
        batches = iter(self.dataloader)
        while window := list(islice(batches, self.grad_acc_steps)):
            yield window


def _accumulation(global_size: int | None, local_size: int, dp_size: int, grad_acc_steps: int | None) -> int:
    if global_size is None:
        if grad_acc_steps is None:
            raise ValueError(
                "neither global_batch_size nor grad_acc_steps is set: one says how large a step is. Set one."
            )
        return grad_acc_steps
    share = local_size * dp_size
    if global_size < share or global_size % share:
        raise ValueError(
            f"global_batch_size={global_size} with local_batch_size={local_size} on {dp_size} data ranks: it must be a "
            f"multiple of {share}. Use {max(share, global_size // share * share)}, or another local_batch_size."
        )
    if grad_acc_steps not in (None, global_size // share):
        raise ValueError(
            f"grad_acc_steps={grad_acc_steps} and global_batch_size={global_size}, which means {global_size // share}: "
            "they contradict each other. Remove grad_acc_steps."
        )
    return global_size // share


def _at_least_one(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}={size}: it must be >= 1. Leave it out for its default.")

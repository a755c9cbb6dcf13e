"""Crash-safe checkpoints for `transformers.Trainer`: a callback that saves, and a directory to resume from.

::

    callback = CheckpointCallback("out/ckpt")
    trainer = Trainer(..., args=TrainingArguments(..., save_strategy="no"), callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.resume_directory())
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from automodel_ckpt.contents import Contents
from automodel_ckpt.directory import latest
from automodel_ckpt.errors import UnsupportedState
from automodel_ckpt.retention import Keep
from automodel_ckpt.saving import save
from automodel_ckpt.staged import staged_directory


class CheckpointCallback(TrainerCallback):
    """Save model, optimizer, schedule, trainer state and random state every ``every`` steps and at the end.

    Args:
        root: directory of the checkpoints.
        every: optimizer steps between saves.
        keep: retention, see `automodel_ckpt.Keep`.
    """

    def __init__(self, root: str | os.PathLike, *, every: int = 1, keep: Keep | None = None) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1 optimizer step.")
        self.root, self.every, self.keep = Path(root), every, keep
        self._saved = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._save(state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._save(state, **kwargs)

    def _save(self, state: Any, *, model: Any, optimizer: Any, lr_scheduler: Any, **_: Any) -> None:
        if state.global_step == self._saved:
            return
        if hasattr(model, "peft_config"):
            raise UnsupportedState("the model is a PEFT model, which Trainer restores by itself; use save_adapter().")
        train = {
            "trainer_state": _trainer_state(state),
            "optimizer": getattr(optimizer, "optimizer", optimizer).state_dict(),
            "lr_scheduler": lr_scheduler.state_dict(),
        }
        sections = {"model": model, "train": train, "rank": _random_state()}
        save(self.root, sections, step=state.global_step, keep=self.keep)
        self._saved = state.global_step

    def resume_directory(self) -> str | None:
        """A directory in Trainer's own layout with the newest checkpoint, or None if there is no checkpoint.

        Its bytes come from a checkpoint whose every block was checked; give it to ``resume_from_checkpoint``.
        """
        newest = latest(self.root)
        if newest is None:
            return None
        contents = Contents(newest)
        # Trainer takes the step from the name.
        target = self.root / ".resume" / f"checkpoint-{contents.manifest.step}"
        shutil.rmtree(self.root / ".resume", ignore_errors=True)
        train = contents.state("train")
        with staged_directory(target) as staging:
            (staging / "trainer_state.json").write_text(train["trainer_state"])
            torch.save(train["optimizer"], staging / "optimizer.pt")
            torch.save(train["lr_scheduler"], staging / "scheduler.pt")
            for rank in range(contents.manifest.world_size):
                name = "rng_state.pth" if contents.manifest.world_size == 1 else f"rng_state_{rank}.pth"
                torch.save(contents.state("rank", rank), staging / name)
            _write_weights(contents, staging)
        return str(target)


def _write_weights(contents: Contents, staging: Path) -> None:
    from automodel_ckpt.local_disk import LocalDisk
    from automodel_ckpt.writer import write_tensors

    write_tensors(LocalDisk(staging), "model.safetensors", contents.tensors("model"))


def _trainer_state(state: Any) -> str:
    """Trainer's state as its own JSON text."""
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(state), indent=2, sort_keys=True) + "\n"


def _random_state() -> dict[str, Any]:
    """Random state under the names that Trainer gives it."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states

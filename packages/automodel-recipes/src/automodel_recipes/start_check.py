"""Before the first step: what this run is going to write can be written, and read again."""

import contextlib
import shutil
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def check_start(r: "BaseRecipe") -> None:
    """Write a checkpoint and load it into the run again; write the weights and load them as others would.

    A full disk, a state that cannot be stored, or weights that no reader takes come out now and not at the first save.
    Both are deleted again. Runs without checkpoints, with ``read_back: false``, and resumed ones are left alone.

    Raises: CheckpointError and others of `automodel_ckpt`: what was written is not what is in memory.
    """
    checkpointer = r.checkpointer
    if not (checkpointer.enabled and checkpointer.read_back) or r.step_scheduler.step > 0:
        return
    start = time.monotonic()
    _write_and_reload(r)
    done = f"checkpoint write + reload ok ({time.monotonic() - start:.1f} s)"
    if checkpointer.reads_back():
        from automodel_recipes.weights import check_first_export

        start = time.monotonic()
        with r.as_exported():
            check_first_export(r)
        # A fresh adapter adds nothing, whatever it holds: its first save, which does, is looked at again.
        checkpointer.first_checked = r.built.peft is None
        reader = "transformers" if r.built.peft is None else "PEFT"
        done += f" | weights load in {reader} ({time.monotonic() - start:.1f} s)"
    r.console.fact("check", done)


def _write_and_reload(r: "BaseRecipe") -> None:
    from automodel_ckpt import load, save
    from automodel_ckpt.lease import release

    # One level down: what sweeps a run's directory does not look there.
    directory = r.run_dir.path / ".start-check" / "run"
    state = r.checkpointer.state()
    try:
        load(save(directory, state, step=0, metrics={}, trainable_only=r.built.peft is not None), state)
    finally:
        if r.parallel.is_main:
            release(directory)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory.parent)

"""Wait for the next global batch so that a stop signal, on any rank, breaks the wait off without losing a sample."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automodel_recipes.batches import Batch
from automodel_recipes.interrupt import SAVE, StopAgreed, StopWait

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """This rank's micro-batches of one optimizer step."""

    micro_batches: list[Batch]
    seconds: float
    """How long they were waited for."""
    save: bool
    """Whether a checkpoint after this step was asked for."""


def next_window(r: "BaseRecipe", windows: Iterator[list[Batch]]) -> Window | None:
    """The next step's micro-batches, None at the end of the schedule.

    The one place in the loop where ranks agree on stopping: a rank whose loader hangs takes part without its batch.

    Raises: StopAgreed: some rank received a stop signal; the schedule and the loader stand where they stood before.
    """
    before = (r.step_scheduler.state_dict(), r.train_loader.state_dict())
    start = time.monotonic()
    micro_batches: list[Batch] | None = None
    try:
        with warn_of_stall(r.step_scheduler.step + 1, after_s=r.stall_warning_s), r.stop.interruptible():
            micro_batches = next(windows, None)
    except StopWait:
        pass
    waited = time.monotonic() - start
    code = r.agreed_code()
    if code > SAVE:
        r.step_scheduler.load_state_dict(before[0])
        r.train_loader.load_state_dict(before[1])
        raise StopAgreed(code)
    return None if micro_batches is None else Window(micro_batches, waited, code == SAVE)


@contextmanager
def warn_of_stall(step: int, *, after_s: float) -> Iterator[None]:
    """Warn when the block takes longer than ``after_s`` seconds, and again each time that has doubled; 0 is never."""
    done = threading.Event()

    def watch() -> None:
        waited = after_s
        while not done.wait(waited if waited == after_s else waited / 2):
            logger.warning(
                "step %d has waited %.0f s for data. Look at the storage, or raise dataloader.num_workers.",
                step,
                waited,
            )
            waited *= 2

    watcher = threading.Thread(target=watch, name="data-stall", daemon=True) if after_s > 0 else None
    if watcher is not None:
        watcher.start()
    try:
        yield
    finally:
        done.set()

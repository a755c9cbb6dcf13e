"""Kill ranks of a training run at random, over and over, and see what the next run finds.

Each trial forks a process group that resumes from the newest checkpoint, trains and saves every step, until a
random subset of it is killed. Then the newest checkpoint must be no older than the last save that was acknowledged
to anybody, must verify, and the next trial must resume from it by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from automodel_ckpt.directory import latest
from automodel_ckpt.errors import CheckpointError
from automodel_ckpt.faults import ranks
from automodel_ckpt.layout import step_of
from automodel_ckpt.loading import load
from automodel_ckpt.retention import Keep
from automodel_ckpt.saving import save
from automodel_ckpt.verification import verify


@dataclass
class Tally:
    """What a campaign has seen."""

    trials: int = 0
    acknowledged: int = 0
    """Saves that returned."""
    killed_in_save: int = 0
    """Trials after which a half-written or half-deleted directory was left."""
    lost: list[str] = field(default_factory=list)
    """Trials after which an acknowledged checkpoint was gone, damaged or could not be resumed."""
    hangs: int = 0
    """Trials in which a surviving rank was alive past the deadline."""
    seconds: float = 0.0


def kill_campaigns(root: Path, *, trials: int, jobs: int, seed: int = 0, **keys: Any) -> Tally:
    """Run ``jobs`` campaigns beside each other in directories of their own, and return the sum of their tallies.

    After a single rank is killed the others wait for their deadline, which costs time but no processor: several
    campaigns at once keep the machine busy meanwhile.

    Args:
        trials: of all campaigns together.
        keys: as for `kill_campaign`.
    """
    began = time.monotonic()
    ranks.preload()
    shares = [trials // jobs + (job < trials % jobs) for job in range(jobs)]
    pids = [
        _fork(root / f"job-{job}", partial(kill_campaign, trials=share, seed=seed + job, **keys))
        for job, share in enumerate(shares)
    ]
    total = Tally()
    for job, pid in enumerate(pids):
        _add(total, root / f"job-{job}", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    total.seconds = time.monotonic() - began
    return total


def _fork(place: Path, work: Callable[[Path], Tally]) -> int:
    """Run a campaign in a child."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(place)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
        traceback.print_exc()
        os._exit(1)


def _add(total: Tally, place: Path, status: int) -> None:
    if status:
        total.lost.append(f"{place.name} ended with status {status}")
        return
    for name, value in json.loads((place / "tally.json").read_text()).items():
        setattr(total, name, getattr(total, name) + value)  # of seconds the caller keeps its own


def kill_campaign(
    root: Path,
    *,
    trials: int,
    world_size: int = 4,
    seed: int = 0,
    deadline_s: float = 4.0,
    limit_s: float | None = None,
) -> Tally:
    """Run a campaign in ``root`` and return its tally, which is also in ``root/tally.json`` after every trial.

    Args:
        trials: how many at most.
        world_size: gloo ranks with an FSDP2 model; 1 means a plain model in one process.
        deadline_s: of a save; surviving ranks have three times as long to end.
        limit_s: no trial begins after so many seconds.
    """
    chance, tally, began = random.Random(seed), Tally(), time.monotonic()
    acknowledgements = root / "acknowledged"
    root.mkdir(parents=True, exist_ok=True)
    run = root / "run"
    for trial in range(trials):
        if limit_s is not None and time.monotonic() - began > limit_s:
            break
        group = ranks.start(world_size, lambda rank: _train(run, acknowledgements, rank, world_size, deadline_s))
        try:
            _wait_for_save(acknowledgements, group, chance)
        except BaseException:
            group.kill(list(range(world_size)))  # nobody else would end them
            group.wait(3 * deadline_s)
            raise
        victims = list(range(world_size)) if chance.random() < 0.5 else [chance.randrange(world_size)]
        group.kill(victims)
        tally.hangs += not group.wait(3 * deadline_s)
        tally.trials += 1
        tally.killed_in_save += any(name.startswith((".saving", ".trash")) for name in os.listdir(run))
        problem = _check(run, acknowledgements)
        if problem:
            tally.lost.append(f"trial {trial}: {problem}")
        tally.acknowledged = len(acknowledgements.read_text().split()) if acknowledgements.exists() else 0
        tally.seconds = time.monotonic() - began
        (root / "tally.json").write_text(json.dumps(asdict(tally)))
    return tally


def _train(run: Path, acknowledgements: Path, rank: int, world_size: int, deadline_s: float) -> None:
    """One training process: resume, then a save per step until it is killed."""
    import torch
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(16, 33), nn.Linear(33, 16))
    if world_size > 1:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train = {"step": 0}
    if latest(run) is not None:
        load(run, {"model": model, "optim": optimizer, "train": train}, deadline_s=deadline_s)
    for step in range(train["step"] + 1, train["step"] + 10_000):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        train["step"] = step
        state = {"model": model, "optim": optimizer, "train": train}
        save(run, state, step=step, keep=Keep(last=2), deadline_s=deadline_s, threads=1)
        if rank == 0:
            with open(acknowledgements, "a") as file:
                file.write(f"{step}\n")


def _wait_for_save(acknowledgements: Path, group: ranks.Ranks, chance: random.Random) -> None:
    """Until the group has saved once more (a start that failed shows in the check), then a random moment longer."""
    size = acknowledgements.stat().st_size if acknowledgements.exists() else 0
    end = time.monotonic() + 30
    while time.monotonic() < end and (not acknowledgements.exists() or acknowledgements.stat().st_size == size):
        time.sleep(0.002)
        group._reap()
        if len(group.statuses) == len(group.pids):
            return
    time.sleep(chance.random() * 0.15)


def _check(run: Path, acknowledgements: Path) -> str | None:
    steps = acknowledgements.read_text().split() if acknowledgements.exists() else []
    newest = latest(run)
    if newest is None:
        return "no checkpoint" if steps else None
    step = step_of(newest.name) or 0
    if steps and step < int(steps[-1]):
        return f"newest is {step}, acknowledged {steps[-1]}"
    with contextlib.suppress(CheckpointError):
        verify(newest)
        return None
    return f"{newest.name} does not verify"

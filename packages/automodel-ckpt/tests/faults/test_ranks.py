"""Ranks that are killed, raise, hang or are late; two runs in one directory."""

import os
import threading
import time

import pytest
import torch
from torch import nn

from automodel_ckpt import LeaseHeld, SaveFailed, latest, lease, load, save, verify
from automodel_ckpt.directory import LocalDirectory
from automodel_ckpt.faults import ranks
from automodel_ckpt.faults.campaign import kill_campaign, kill_campaigns
from automodel_ckpt.faults.system import fail_from


def _survived(tally, trials):
    assert (tally.trials, tally.lost, tally.hangs) == (trials, [], 0), tally
    assert tally.acknowledged >= trials


def test_single_process_killed_at_random(fast_path):
    _survived(kill_campaign(fast_path, trials=15, world_size=1, seed=os.getpid()), 15)


@pytest.mark.more
def test_four_ranks_killed_at_random(fast_path):
    _survived(kill_campaigns(fast_path, trials=50, jobs=4, world_size=4, seed=os.getpid()), 50)


def test_campaign_that_ends_in_an_error_counts_as_lost(fast_path, monkeypatch):
    from automodel_ckpt.faults import campaign

    monkeypatch.setattr(campaign, "_wait_for_save", lambda *_: 1 / 0)
    tally = kill_campaigns(fast_path, trials=2, jobs=2, world_size=1)
    assert tally.lost == ["job-0 ended with status 1", "job-1 ended with status 1"]


def test_campaign_notices_a_lost_checkpoint(fast_path, monkeypatch):
    """The judge is judged: a saver that acknowledges before anything is on disk loses checkpoints."""
    from automodel_ckpt.faults import campaign

    monkeypatch.setattr(campaign, "save", lambda run, state, *, step, **_: run.mkdir(exist_ok=True))
    assert kill_campaign(fast_path, trials=2, world_size=1).lost


def _model(rank):
    torch.manual_seed(0)
    return {"model": nn.Linear(4, 4), "rank": {"r": rank}}


def test_rank_that_fails_fails_the_save_on_every_rank(fast_path):
    def work(rank):
        save(fast_path, _model(rank), step=1)
        directory = LocalDirectory(fast_path, system=fail_from(0) if rank == 1 else os)
        with pytest.raises(SaveFailed, match=r"rank 1: ENOSPC .* at .*shard-0000"):
            save(directory, _model(rank), step=2)
        save(fast_path, _model(rank), step=3)

    ranks.run(3, work)
    assert sorted(p.name for p in fast_path.iterdir()) == [".lock", "LATEST", "step-00000001", "step-00000003"]


def test_rank_that_hangs_ends_in_an_error_on_the_others_at_the_deadline(fast_path):
    def work(rank):
        if rank == 2:
            time.sleep(3)
            return
        with pytest.raises(SaveFailed, match=r"rank 2 did not answer within 0\.5 s"):
            save(fast_path, _model(rank), step=1, deadline_s=0.5)

    ranks.run(3, work)
    assert latest(fast_path) is None


def test_slow_rank_is_waited_for(fast_path):
    def work(rank):
        time.sleep(0.4 * rank)
        save(fast_path, _model(rank), step=1, deadline_s=30)

    ranks.run(2, work)
    assert verify(fast_path).ok


def test_load_error_of_one_rank_reaches_all(fast_path):
    def work(rank):
        save(fast_path, _model(rank), step=1)
        model = nn.Linear(4, 5) if rank == 1 else nn.Linear(4, 4)
        with pytest.raises(RuntimeError, match=r"rank 1: .*shape \[4, 4\] in the checkpoint, \[5, 4\] here"):
            load(fast_path, {"model": model})

    ranks.run(2, work)


def test_second_run_in_a_directory_is_refused_until_the_first_ends(fast_path):
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        save(fast_path, {"train": {"x": 1}}, step=1)
        (fast_path / ".saving-00000002-other").mkdir()
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(LeaseHeld, match=f"process {pid} on "):
        save(fast_path, {"train": {"x": 2}}, step=2)
    assert (fast_path / ".saving-00000002-other").exists()
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    save(fast_path, {"train": {"x": 2}}, step=2)
    assert not (fast_path / ".saving-00000002-other").exists()
    lease.release(fast_path)


def test_checkpoint_that_is_being_read_is_not_deleted(fast_path):
    save(fast_path, {"train": {"x": 1}}, step=1)
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with LocalDirectory(fast_path).reading("step-00000001"):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    for step in (2, 3):
        save(fast_path, {"train": {"x": step}}, step=step)
    assert (fast_path / "step-00000001").exists()
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    save(fast_path, {"train": {"x": 4}}, step=4)
    assert not (fast_path / "step-00000001").exists()


@pytest.mark.parametrize("alive", [True, False])
def test_lease_of_another_machine_counts_only_while_it_beats(fast_path, monkeypatch, alive):
    monkeypatch.setattr(lease, "WATCH_S", 0.6)
    lock = fast_path / ".lock"  # on a file system that does not share locks, this text is all that one sees
    lock.write_text('{"host": "elsewhere", "pid": 7, "beat": 1}')
    if alive:
        threading.Timer(0.2, lock.write_text, ['{"host": "elsewhere", "pid": 7, "beat": 2}']).start()
    if alive:
        with pytest.raises(LeaseHeld, match="on elsewhere"):
            lease.acquire(fast_path)
    else:
        lease.acquire(fast_path).release()

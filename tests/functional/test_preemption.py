"""Signals in training, evaluation, save and data wait: exit code, whole checkpoint, the undisturbed curve."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from automodel_ckpt import saving, verification
from automodel_core.config import config_from_dict
from automodel_data.llm.chat import TokenDataset
from automodel_recipes import TrainOptions, evaluate, loop
from automodel_recipes.base import BaseRecipe
from automodel_recipes.errors import Interrupted
from automodel_recipes.run import run


def start(config_path, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "automodel_recipes", "train", str(config_path), *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
    )


def rows(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(process, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"never happened; exit code {process.poll()}\n{process.communicate(timeout=5)[0]}")


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    screen, _ = process.communicate(timeout=120)
    return process.returncode, screen


def losses(out):
    return {row["step"]: row["loss"] for row in rows(out) if row["kind"] == "train"}


def reached(out, step):
    return lambda: step in losses(out)


def verify(out):
    done = subprocess.run(
        [sys.executable, "-m", "automodel_recipes", "ckpt", "verify", str(out)], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def long_config(tiny_config, tmp_path):
    tiny_config["step_scheduler"].update(
        local_batch_size=4, num_epochs=2000, max_steps=4000, save_checkpoint_every_epoch=False
    )
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 0.001}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), "read_back": False}
    return tiny_config


def in_process(config, out, **options):
    """Run a configuration in this process; the recipe, or what it raised."""
    config = {**config, "checkpoint": {**config["checkpoint"], "checkpoint_dir": str(out)}}
    return run(config_from_dict(config), TrainOptions(quiet=True, **options))


def stopped_in_process(config, out, **options):
    with pytest.raises(Interrupted) as stopped:
        in_process(config, out, **options)
    assert stopped.value.exit_code == 143
    return str(stopped.value)


@pytest.mark.more
@pytest.mark.parametrize("ranks", [1, 2])
def test_term_ends_with_143_and_the_run_goes_on_as_if_never_stopped(long_config, write_yaml, tmp_path, cli, ranks):
    out = tmp_path / "run"
    processes = ("--nproc-per-node", str(ranks)) if ranks > 1 else ()
    process = start(write_yaml(long_config), *processes)
    wait_for(process, reached(out, 3))
    code, screen = stop(process)
    assert code == 143, screen
    assert "Traceback" not in screen
    verify(out)
    stopped_at = max(losses(out))
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    end = stopped_at + 4
    cli(long_config, "run", "--resume", "auto", "--max-steps", str(end), *processes)
    whole = cli(long_config, "whole", "--max-steps", str(end), *processes)
    assert losses(out) == losses(whole.path)
    assert len(losses(out)) == end


def send_at(monkeypatch, owner, name, *, call):
    """Send SIGTERM to this process right before the ``call``-th call of a function."""
    plain, calls = getattr(owner, name), []

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


def check_curve(config, tmp_path, *, stopped_at):
    """The stopped run goes on, and gives the curve of one that was never stopped."""
    assert newest_step(tmp_path / "run") == stopped_at
    in_process(config, tmp_path / "run", resume="auto", max_steps=stopped_at + 3)
    in_process(config, tmp_path / "whole", max_steps=stopped_at + 3)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == stopped_at + 3


def newest_step(out):
    return int(max(path.name for path in out.glob("step-*")).removeprefix("step-"))


def test_a_signal_in_an_evaluation_breaks_it_off_and_saves(long_config, tmp_path, monkeypatch):
    long_config["validation_dataset"] = dict(long_config["dataset"])
    long_config["evaluation"] = {"at_start": False}
    long_config["step_scheduler"]["val_every_steps"] = 2
    with monkeypatch.context() as patched:
        # 21 rows in batches of 4 are 6 batches: in the third the evaluation of step 2 is half done.
        calls = send_at(patched, evaluate, "to_device", call=3)
        message = stopped_in_process(long_config, tmp_path / "run")
    assert "after step 2" in message
    assert len(calls) == 3
    assert [row for row in rows(tmp_path / "run") if row["kind"] == "val"] == []
    check_curve(long_config, tmp_path, stopped_at=2)


def test_a_signal_in_a_save_lets_the_save_finish_and_trains_no_further(long_config, tmp_path, monkeypatch):
    long_config["step_scheduler"]["ckpt_every_steps"] = 2
    with monkeypatch.context() as patched:
        send_at(patched, saving, "save_captured", call=1)
        stopped_in_process(long_config, tmp_path / "run")
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    verification.verify(tmp_path / "run" / "step-00000002", "hash")
    check_curve(long_config, tmp_path, stopped_at=2)


def test_a_signal_in_a_wait_for_data_loses_no_sample(long_config, tmp_path, monkeypatch):
    # Before the first step all 21 rows are counted, and 8 are read to know the data again; a step takes 8.
    from_read = 21 + 8 + 3 * 8 + 5
    with monkeypatch.context() as patched:
        patched.setattr(TokenDataset, "__getitem__", hanging(TokenDataset.__getitem__, from_read=from_read))
        started = time.monotonic()
        stopped_in_process(long_config, tmp_path / "run")
        assert time.monotonic() - started < 60
    check_curve(long_config, tmp_path, stopped_at=3)


def test_a_batch_that_came_before_another_rank_asked_to_stop_is_given_back(long_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        codes = iter([0, 0, 0, int(signal.SIGTERM)])
        patched.setattr(BaseRecipe, "agreed_code", lambda self: next(codes))
        stopped_in_process(long_config, tmp_path / "run")
    check_curve(long_config, tmp_path, stopped_at=3)


def hanging(plain, *, from_read):
    """Rows that never come from the given read on; a second later the cluster sends SIGTERM."""
    reads = []

    def read(self, index):
        reads.append(index)
        if len(reads) == from_read:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(300)
        return plain(self, index)

    return read


def test_a_touched_file_makes_a_checkpoint_and_the_run_goes_on(long_config, tmp_path, monkeypatch):
    plain = loop.train_step

    def touch_at_two(r, micro_batches):
        if r.step_scheduler.step == 2:
            (tmp_path / "run" / "SAVE").touch()
        return plain(r, micro_batches)

    monkeypatch.setattr(loop, "train_step", touch_at_two)
    in_process(long_config, tmp_path / "run", max_steps=5)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00000003", "step-00000005"]
    assert not (tmp_path / "run" / "SAVE").exists()


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    code = """
import os, signal, time
from automodel_recipes.interrupt import StopRequest, catch_stop_signals
with catch_stop_signals(StopRequest()):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # delivered twice, by the cluster and by the launcher: one request
    print("still here", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGINT)
    print("never", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (130, "still here\n")


HANGING = '''
import os
import time
from pathlib import Path

from automodel_data.llm.chat import ChatDataset

class HangingChat(ChatDataset):
    """Rows that never come on rank 1 once a few steps have been logged."""

    def __getitem__(self, index):
        hang = Path(os.environ["HANG"])
        metrics = hang.with_name("run") / "metrics.jsonl"
        if os.environ.get("RANK") == "1" and hang.exists() and metrics.exists():
            if metrics.read_text().count('"kind": "train"') >= 3:
                hang.with_name("hang-hangs").touch()
                time.sleep(300)
        return super().__getitem__(index)
'''


@pytest.mark.more
def test_one_rank_hanging_in_its_loader_stops_with_the_others(long_config, write_yaml, tmp_path, monkeypatch):
    (tmp_path / "hanging.py").write_text(HANGING)
    (tmp_path / "hang").touch()
    long_config["dataset"]["_target_"] = f"{tmp_path}/hanging.py:HangingChat"
    out = tmp_path / "run"
    allow = ("--allow-target", str(tmp_path / "hanging.py"))
    path = write_yaml(long_config)
    process = start(path, "--nproc-per-node", "2", *allow, HANG=str(tmp_path / "hang"))
    wait_for(process, (tmp_path / "hang-hangs").exists)
    code, screen = stop(process)
    assert code == 143, screen
    steps = newest_step(out)
    assert sorted(losses(out)) == list(range(1, steps + 1))
    verify(out)
    again = ("--nproc-per-node", "2", *allow, "--resume", "auto", "--max-steps", str(steps + 2))
    resumed = start(path, *again, HANG=str(tmp_path / "no"))
    screen, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, screen
    assert sorted(losses(out)) == list(range(1, steps + 3))

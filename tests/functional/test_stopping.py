"""Ctrl-C on a running process: exit code 130, a whole checkpoint, and the run goes on as if never stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest


def interrupt_after_first_step(config_path, out):
    """Start a run, press Ctrl-C once it has taken a step, and wait for its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "automodel_recipes", "train", str(config_path)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    metrics = out / "metrics.jsonl"
    for _ in range(1200):
        if process.poll() is not None or (metrics.exists() and '"train"' in metrics.read_text()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout + stderr


@pytest.fixture
def stopped(tiny_config, write_yaml, tmp_path):
    out = tmp_path / "stopped"
    tiny_config["step_scheduler"].update(num_epochs=2000, max_steps=5000)
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(out)}
    code, screen = interrupt_after_first_step(write_yaml(tiny_config, "stopped.yaml"), out)
    return code, screen, out


def test_ctrl_c_exits_130_and_leaves_whole_files(stopped):
    code, screen, out = stopped
    assert code == 130, screen
    assert "Traceback" not in screen
    unfinished = [p.name for p in out.rglob("*") if "tmp" in p.name or "partial" in p.name]
    assert unfinished == []
    checked = subprocess.run(
        [sys.executable, "-m", "automodel_recipes", "ckpt", "verify", str(out)], text=True, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not (out / "final").exists()

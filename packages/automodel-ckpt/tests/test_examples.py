"""The examples, killed in the middle and started again, print the losses of a run that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/ckpt"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not part of an installed wheel", allow_module_level=True)


def _run(script, root, steps, kill_after=None):
    """Losses by step that the script prints; the process is killed once it has printed ``kill_after`` of them."""
    command = [sys.executable, str(EXAMPLES / script), str(root), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    losses = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("step "):
                losses[int(line.split()[1])] = line.split()[3]
                if len(losses) == kill_after:
                    process.send_signal(signal.SIGKILL)
                    break
        error = process.stderr.read()
    assert kill_after is not None or process.returncode == 0, error
    return losses


@pytest.mark.parametrize("script", ["bare_loop.py", pytest.param("hf_trainer.py", marks=pytest.mark.more)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, script):
    whole = _run(script, tmp_path / "whole", 12)
    first = _run(script, tmp_path / "killed", 12, kill_after=5)
    second = _run(script, tmp_path / "killed", 12)
    assert sorted(whole) == list(range(1, 13))
    assert min(second) > 1
    assert {**first, **second} == whole

"""The example under a trainer, killed and started again on another number of processes, goes through the same steps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_data.loader import BatchPlan

SCRIPT = Path(__file__).resolve().parents[3] / "examples/data/hf_trainer.py"
if not SCRIPT.is_file():
    pytest.skip("the examples are not part of an installed wheel", allow_module_level=True)
pytestmark = pytest.mark.more  # processes that import transformers
pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")

ROWS = re.compile(r"rank (\d) rows \[([-\d, ]+)\]")
PLAN = BatchPlan(num_samples=29, global_batch_size=8, local_batch_size=8, seed=3)
EXPECTED = [sorted(PLAN.window(epoch, window).tolist()) for epoch in (0, 1) for window in range(4)]


def steps(root: Path, world: int, *options: str, first: int = 0, kill_after: int | None = None) -> list[list[int]]:
    """Rows of each step by the lines that the ranks print; killed as soon as ``kill_after`` lines are there."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), str(root), *options]
    lines: list[list[list[int]]] = [[] for _ in range(world)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        output = []
        for line in process.stdout:
            output.append(line)
            for rank, rows in ROWS.findall(line):
                lines[int(rank)].append([i for i in map(int, rows.split(",")) if i >= 0])
            if kill_after is not None and sum(map(len, lines)) >= kill_after:
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert kill_after is not None or process.returncode == 0, "".join(output)[-3000:]
    return grouped(lines, world, first)


def grouped(lines: list[list[list[int]]], world: int, first: int) -> list[list[int]]:
    """The ranks' micro-batches by step, where ``first`` is the number of the first step."""
    plan, found, at = BatchPlan(num_samples=29, global_batch_size=8, local_batch_size=2, dp_size=world), [], 0
    while any(len(rank) > at for rank in lines):
        size = plan.micro_batches_in((first + len(found)) % 4)
        found.append(sorted(i for rank in lines for part in rank[at : at + size] for i in part))
        at += size
    return found


@pytest.mark.parametrize("options", [(), ("--trl",)], ids=["transformers", "trl"])
def test_killed_and_started_again(options, tmp_path):
    if options:
        pytest.importorskip("trl", reason="trl is not installed")
    first = steps(tmp_path, 1, *options, kill_after=11)  # in the third step; two are saved
    assert first[:2] == EXPECTED[:2]
    done = max(
        int(path.name.split("-")[1])
        for path in tmp_path.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    )
    assert steps(tmp_path, 1, *options, first=done) == EXPECTED[done:]


def test_two_processes_and_then_one(tmp_path):
    assert steps(tmp_path, 2, "--epochs", "1") == EXPECTED[:4]
    assert steps(tmp_path, 1, "--epochs", "2") == EXPECTED[4:]

"""What a run estimates before its first step is what its tensors come to be: real runs on the CPU, every tensor
followed."""

import json
import os
import subprocess
import sys

import pytest

from automodel_recipes.cli.app import main
from automodel_recipes.shipped import find_shipped

COMMON = [
    "--max-steps",
    "3",
    "--quiet",
    "monitoring.track_memory=true",
    "evaluation.exact_match=false",
    "evaluation.at_start=false",
    "checkpoint.read_back=false",
    "checkpoint.save_consolidated=false",
    "checkpoint.enabled=true",
    "step_scheduler.ckpt_every_steps=1000",
    "validation_dataset.limit_dataset_samples=4",
]
CASES = {
    "full": ("demo_full", []),
    "full, accumulating": ("demo_full", ["step_scheduler.local_batch_size=16"]),
    "lora": ("demo_lora", []),
    "packed": (
        "demo_lora",
        [
            "packed_sequence.packed_sequence_size=256",
            "step_scheduler.local_batch_size=4",
            "dataset.limit_dataset_samples=600",
        ],
    ),
    "fused loss": ("demo_full", ["loss_fn._target_=fused_linear_ce"]),
}


def memory_of(run):
    return json.loads((run / "run.json").read_text())["memory"]


def check(memory):
    assert memory["estimate_static"] == memory["measured_static"]
    assert min(memory["measured_static"][part] for part in ("parameters", "gradients", "optimizer")) > 100_000
    parts = memory["measured_parts"]
    assert memory["estimate_parts"]["activations"] == pytest.approx(parts["activations"], rel=0.1)
    assert memory["estimate_bytes"] == pytest.approx(memory["measured_bytes"], rel=0.06)


@pytest.mark.parametrize("case", CASES)
def test_estimate_is_the_measured_peak(case, tmp_path, monkeypatch):
    recipe, overrides = CASES[case]
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(find_shipped(recipe).path), *COMMON, *overrides, "checkpoint.checkpoint_dir=run"]
    assert main(arguments) == 0
    check(memory_of(tmp_path / "run"))


@pytest.mark.more
def test_estimate_is_the_measured_peak_of_two_sharded_ranks(tmp_path):
    overrides = ["distributed.strategy=fsdp2", "step_scheduler.local_batch_size=16", "checkpoint.checkpoint_dir=run"]
    command = [sys.executable, "-m", "automodel_recipes", "train", str(find_shipped("demo_full").path)]
    done = subprocess.run(
        [*command, *COMMON, *overrides, "--nproc-per-node", "2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    memory = memory_of(tmp_path / "run")
    check(memory)
    assert memory["measured_static"]["parameters"] < 2_000_000  # half of the model's 3 MB

"""All six packages in one run: LoRA, FSDP2 x TP, kernels, packed rows, saves in the background; killed, and resumed.

The run is killed on four processes, goes on under another layout on two, and ends at the weights of one process that
was never disturbed. Plain transformers and peft load what it wrote.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from comparing import weight_change_difference

pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]

STEPS = 8
REPORTS = {
    "core": "LoRA on 14 modules",
    "kernels": "lora: 14 x LoRALayer",
    "parallel": "fsdp2: dp_shard 2 x tp 2",
    "data": "% full",
}


@pytest.fixture
def config(tiny_config):
    tiny_config.update(
        peft={"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8},
        kernels={},
        packed_sequence={"packed_sequence_size": 128},
        optimizer={"_target_": "torch.optim.AdamW", "lr": 0.01, "eps": 1e-4},
    )
    # Every epoch has two windows of 4 packs, the second one incomplete.
    tiny_config["step_scheduler"] = {
        "global_batch_size": 4, "local_batch_size": 2, "num_epochs": 100, "max_steps": STEPS, "ckpt_every_steps": 2
    }  # fmt: skip
    return tiny_config


def losses(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # A line that is being written when the process is killed may be cut.
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def kill_after(config_path, out, step, num_processes):
    """Start the command line, wait for a step and a published checkpoint, and kill every process of the run."""
    command = [sys.executable, "-m", "automodel_recipes", "train", str(config_path)]
    process = subprocess.Popen(
        [*command, "--nproc-per-node", str(num_processes)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if max(losses(out), default=0) >= step and list(out.glob("step-*/MANIFEST.json")):
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate(timeout=60)[0]
    os.killpg(process.pid, signal.SIGKILL)
    screen = process.communicate(timeout=60)[0]
    return screen


def test_killed_on_four_processes_resumed_on_two(config, cli, write_yaml, tmp_path):
    whole = cli(config, "whole")
    disturbed = {
        **config,
        "distributed": {"strategy": "fsdp2", "tp_size": 2},
        "checkpoint": {"enabled": True, "is_async": True, "checkpoint_dir": str(tmp_path / "run")},
    }
    disturbed["step_scheduler"] = {**config["step_scheduler"], "max_steps": 10_000}
    screen = kill_after(write_yaml(disturbed, "run.yaml"), tmp_path / "run", 3, num_processes=4)
    for package, words in REPORTS.items():
        assert words in screen, f"{package}: {screen}"
    before = losses(tmp_path / "run")

    verified = subprocess.run(
        [sys.executable, "-m", "automodel_recipes", "ckpt", "verify", str(tmp_path / "run")],
        text=True, capture_output=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr

    disturbed["distributed"] = {"strategy": "fsdp2"}
    disturbed["step_scheduler"] = config["step_scheduler"]
    resumed = cli(disturbed, "run", "--nproc-per-node", "2", "--resume", "auto")
    assert "resume" in resumed.stdout
    after = losses(tmp_path / "run")
    assert max(after) == STEPS
    for step, loss in enumerate(whole.train("loss"), start=1):
        assert after[step] == pytest.approx(loss, rel=1e-5), step
    assert min(before) == 1

    merge = [sys.executable, "-m", "automodel_recipes", "ckpt", "merge", str(resumed.path), "-o"]
    done = subprocess.run([*merge, str(tmp_path / "merged")], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_outputs(whole, resumed, tmp_path / "merged", config["model"]["pretrained_model_name_or_path"])


def check_outputs(whole, resumed, merged, base):
    """Adapters of both runs agree, and plain transformers gives one model by peft and by the merge."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours, theirs = (load_file(run.path / "final/adapter_model.safetensors") for run in (resumed, whole))
    start = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    assert weight_change_difference(start, theirs, ours) <= 1e-4

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        untouched = plain(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(plain, resumed.path / "final").eval()(input_ids=ids).logits
        whole_model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        torch.testing.assert_close(whole_model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - untouched).abs().max() > 0.1

"""The programs under ``examples`` that use one wheel in another stack run as they are, and print what they claim."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.more
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*command):
    """Standard output of a program that ends well."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *map(str, command)], env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_core_in_a_bare_loop(tmp_path):
    text = run(EXAMPLES / "core/bare_loop.py", tmp_path)
    losses = [float(line.split()[3]) for line in text.splitlines() if line.startswith("step ")]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.1
    assert number(r"in memory: (\S+)", text) <= 1e-5


def test_core_under_trainer(tmp_path):
    text = run(EXAMPLES / "core/hf_trainer.py", tmp_path)
    assert number(r"moved by up to ([\d.e+-]+)", text) >= 1e-2
    assert number(r"differ by ([\d.e+-]+)", text) <= 1e-5


def test_kernels_on_plain_models():
    text = run(EXAMPLES / "kernels/plain_model.py")
    for line in [line for line in text.splitlines() if "ForCausalLM: loss" in line]:
        plain, patched, again = (float(value) for value in re.findall(r"(\d+\.\d{6}) ", line))
        assert plain == again
        assert patched == pytest.approx(plain, rel=1e-6)
        assert number(r"gradient (\S+)", line) <= 1e-5
    assert "LlamaForCausalLM: loss" in text
    assert "Qwen3ForCausalLM: loss" in text


def test_fsdp2_and_tp_in_a_loop():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 4]
    text = run(*torchrun, EXAMPLES / "parallel/fsdp2_tp.py")
    losses = [float(value) for value in re.findall(r"loss (\S+)", text)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["llm", "vlm"])
def test_the_finetune_scripts_hand_on_to_train(kind, tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer: {lrr: 1}\n")
    command = [sys.executable, EXAMPLES / kind / "finetune.py", "--config", "c.yaml", "seed=3"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "c.yaml:1" in done.stderr

"""A package of somebody else adds a dataset, a loss, a transform, a recipe and a command, without touching ours."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.more
PLUGIN = Path(__file__).parent / "plugin"

CONFIG = """
recipe: CountingRecipe
seed: 1
device: cpu
model:
  _target_: automodel_core.NeMoAutoModelForCausalLM.from_config
  config:
    _target_: transformers.LlamaConfig
    vocab_size: 1024
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
    tie_word_embeddings: false
tokenizer: {pretrained_model_name_or_path: "pkg://automodel_recipes/assets/tiny_llama"}
transforms: [{_target_: zero_init_head}]
dataset: {_target_: echo_dataset, num_rows: 8}
loss_fn: {_target_: focal_ce, gamma: 2.0}
optimizer: {_target_: torch.optim.SGD, lr: 0.1}
step_scheduler: {global_batch_size: 4, local_batch_size: 2, num_epochs: 1}
checkpoint: {checkpoint_dir: run}
"""


@pytest.fixture(scope="module")
def run_cli(tmp_path_factory):
    """The command line in a process that also sees the plugin's wheel, unpacked; returns stdout."""
    work = tmp_path_factory.mktemp("plugin")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work)]
    subprocess.run(build, cwd=PLUGIN, check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "installed")
    (work / "config.yaml").write_text(CONFIG)
    path = os.pathsep.join(filter(None, [str(work / "installed"), os.environ.get("PYTHONPATH")]))

    def run(*arguments, code=0):
        command = [sys.executable, "-m", "automodel_recipes", *arguments]
        env = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=work, env=env, text=True, capture_output=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.work = work
    return run


def test_a_configuration_of_plugin_parts_validates(run_cli):
    assert "config.yaml: 23 values" in run_cli("validate", "config.yaml", "--deep")


def test_a_wrong_keyword_of_a_plugin_part_is_found(run_cli):
    text = run_cli("validate", "config.yaml", "loss_fn.gama=1.0", code=2)
    assert "loss_fn.gama" in text
    assert 'did you mean "gamma"' in text


def test_all_parts_work_in_one_run(run_cli):
    screen = run_cli("train", "config.yaml")
    assert "zero_init_head: (1024, 16) set to 0" in screen
    rows = [json.loads(line) for line in (run_cli.work / "run/metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["kind"] == "train")
    # A zero head predicts uniformly: the focal loss is (1 - 1/V)^2 log V.
    assert first["loss"] == pytest.approx((1 - 1 / 1024) ** 2 * math.log(1024), rel=1e-5)
    assert (run_cli.work / "run/targets.txt").read_text() == f"{8 * 4}\n"


def test_the_command_is_listed_and_runs(run_cli):
    assert "steps" in run_cli("--help")
    assert run_cli("steps", "run").strip() == "2"

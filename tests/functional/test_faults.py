"""A row that makes the loss infinite, a rank that dies, a loader that hangs: told by name, with the right exit code."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.data_wait import warn_of_stall
from automodel_recipes.errors import NonFiniteLossError
from automodel_recipes.host_memory import HostMemoryWatch
from automodel_recipes.launch.local import launch
from automodel_recipes.llm.finetune import LLMFinetuneRecipe

POISON = "Q"


@pytest.fixture
def poisoned(tiny_config, tiny_model, chat_rows, tmp_path):
    """A model whose embedding of one character is NaN, and rows of which the twelfth alone holds that character."""
    import shutil

    from transformers import AutoTokenizer

    model = tmp_path / "poisoned"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    token = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(POISON)
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    lines = chat_rows.read_text().splitlines()
    lines[11] = lines[11].replace("count", f"count {POISON}")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    tiny_config["model"]["pretrained_model_name_or_path"] = str(model)
    tiny_config["dataset"]["path_or_dataset_id"] = str(tmp_path / "rows.jsonl")
    tiny_config["step_scheduler"]["local_batch_size"] = 4
    # A model with such a weight is refused where it is written, which the first export would be.
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), "read_back": False}
    return tiny_config


def build(config):
    recipe = LLMFinetuneRecipe(config_from_dict(config), TrainOptions(quiet=True))
    recipe.setup()
    return recipe


def test_a_poisoned_row_stops_the_run_by_its_id_and_leaves_the_weights_alone(poisoned, tmp_path):
    recipe = build(poisoned)
    before = {}
    plain = recipe.watchdog.take_step

    def remember(optimizer, grad_norm):
        if not torch.isfinite(grad_norm):
            before.update({name: p.detach().clone() for name, p in recipe.model.named_parameters()})
        return plain(optimizer, grad_norm)

    recipe.watchdog.take_step = remember
    try:
        with pytest.raises(NonFiniteLossError, match=r"Rows whose loss is not finite: 11\.") as stopped:
            recipe.train()
    finally:
        recipe.close()
    assert stopped.value.exit_code == 5
    assert before
    assert all(torch.equal(p, before[name]) or "embed" in name for name, p in recipe.model.named_parameters())
    (dump,) = (tmp_path / "run").glob("nonfinite-step-*-rank-0.json")
    record = json.loads(dump.read_text())
    assert [row["sample_id"] for row in record["rows"]] == [11]
    assert POISON in record["rows"][0]["text"]
    assert len(record["sample_ids"]) > 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["end"]["exit_code"]) == ("failed", 5)


@pytest.mark.more
def test_two_ranks_stop_with_code_5_and_the_row_of_either_is_named(poisoned, cli):
    run = cli(poisoned, "two", "--nproc-per-node", "2", check=False)
    assert run.exit_code == 5, run.stdout + run.stderr
    assert "Rows whose loss is not finite: 11. " in run.stderr
    assert "No single row" not in run.stderr


def test_a_stalled_loader_is_warned_of_again_and_again(caplog):
    with caplog.at_level(logging.WARNING), warn_of_stall(7, after_s=0.05):
        time.sleep(0.5)
    messages = [record.getMessage() for record in caplog.records]
    assert 2 <= len(messages) <= 4  # after 0.05, 0.1, 0.2 and 0.4 s
    assert all(message.startswith("step 7 has waited") for message in messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING), warn_of_stall(8, after_s=5):
        pass
    time.sleep(0.1)
    assert caplog.records == []


def test_growing_host_memory_is_warned_of_once_per_growth():
    watch = HostMemoryWatch(1.0)
    observed = [watch.observe(step, 2.0 + 0.1 * step) for step in range(1, 41)]
    warned = [step for step, warning in enumerate(observed, start=1) if warning]
    assert warned == [20, 30, 40]  # from step 10 on, by one GiB each
    assert observed[19] is not None
    assert "from 3.00 GiB at step 10 to 4.00 GiB at step 20, 102.4 MiB a step" in observed[19]
    steady = HostMemoryWatch(1.0)
    assert not any(steady.observe(step, 5.0) for step in range(100))


RANK = """
import os, signal, sys, time
os._exit(0) if {quit} else None
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
if os.environ["RANK"] == "1" and {dies}:
    os.kill(os.getpid(), signal.SIGKILL)
open(os.path.join({folder!r}, os.environ["RANK"]), "w").close()
time.sleep(120)
"""


@pytest.fixture
def as_ranks(tmp_path, monkeypatch):
    """Let the launcher start a small script in place of the command line."""

    def start(*, dies=False, quits=False):
        script = RANK.format(quit=quits, dies=dies, folder=str(tmp_path))
        plain = subprocess.Popen
        monkeypatch.setattr(
            "automodel_recipes.launch.local.subprocess.Popen",
            lambda command, **keys: plain([sys.executable, "-c", script], **keys),
        )
        return launch(["train"], 2)

    return start


def test_a_rank_that_dies_ends_the_others(as_ranks, capfd):
    started = time.monotonic()
    assert as_ranks(dies=True) == 137
    assert time.monotonic() - started < 60
    assert "rank 1 ended with exit code 137" in capfd.readouterr().err


def test_ranks_that_finish_are_no_failure(as_ranks):
    assert as_ranks(quits=True) == 0


def test_usr1_is_handed_on_to_every_rank(as_ranks, tmp_path):
    import threading

    def when_both_run():
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=when_both_run, daemon=True).start()
    assert as_ranks() == 138

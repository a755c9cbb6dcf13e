"""A secret that comes through the environment appears nowhere."""

import os
import subprocess
import sys

import pytest

CANARY = "canary-71c09ab2"


@pytest.fixture
def secret_config(tiny_config, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", CANARY)
    tiny_config["tokenizer"] = {
        "pretrained_model_name_or_path": tiny_config["model"]["pretrained_model_name_or_path"],
        "token": "${CANARY_TOKEN}",
    }
    tiny_config["step_scheduler"]["max_steps"] = 2
    tiny_config["checkpoint"] = {"enabled": True}
    return tiny_config


def files_with_canary(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_run_leaks_no_secret(cli, secret_config, tmp_path):
    run = cli(secret_config, "out")
    assert CANARY not in run.stdout + run.stderr
    assert files_with_canary(tmp_path) == []


def test_a_traceback_leaks_no_secret(cli, secret_config, tmp_path):
    secret_config["tokenizer"]["use_fast"] = "x${CANARY_TOKEN}"
    run = cli(secret_config, "out", "--debug", check=False)
    assert run.exit_code == 2
    assert "Traceback" in run.stderr
    assert CANARY not in run.stdout + run.stderr
    secret_config["tokenizer"].pop("use_fast")
    secret_config["model"]["no_such_keyword"] = "${CANARY_TOKEN}"
    run = cli(secret_config, "out2", "--debug", check=False)
    assert run.exit_code != 0
    assert CANARY not in run.stdout + run.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["config", "show"],
        ["config", "show", "--provenance"],
        ["config", "show", "--json"],
        ["validate"],
        ["launch", "slurm", "--dry-run"],
        ["launch", "nodes"],
        ["launch", "k8s", "--dry-run"],
    ],
)
def test_looking_at_a_configuration_leaks_no_secret(secret_config, write_yaml, command):
    path = write_yaml(secret_config)
    done = subprocess.run(
        [sys.executable, "-m", "automodel_recipes", *command, str(path), "wandb.api_key=" + CANARY],
        text=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert CANARY not in done.stdout + done.stderr
    if command[0] == "config":
        assert "***" in done.stdout

"""``recipes new`` writes a configuration that validates, and overwrites nothing."""

import pytest
import yaml

from automodel_recipes.cli import main

MODEL = "pkg://automodel_recipes/assets/tiny_llama"
ROWS = "pkg://automodel_recipes/assets/orders/train.jsonl"


@pytest.mark.parametrize("full", [False, True])
def test_what_it_writes_validates(tmp_path, monkeypatch, full):
    monkeypatch.chdir(tmp_path)
    options = ["--full"] if full else []
    assert main(["recipes", "new", "mine", "--model", MODEL, "--data", ROWS, *options]) == 0
    assert main(["validate", "mine.yaml"]) == 0
    values = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert ("peft" in values) is not full
    assert values["checkpoint"]["checkpoint_dir"] == "runs/mine"


def test_an_existing_file_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("mine")
    assert main(["recipes", "new", "mine", "--model", "m", "--data", "d"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


@pytest.mark.more
def test_what_it_writes_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "new", "mine", "--model", MODEL, "--data", ROWS]) == 0
    small = ["step_scheduler.global_batch_size=4", "device=cpu", "model.dtype=float32"]
    assert main(["train", "mine.yaml", "--max-steps", "2", "--quiet", *small]) == 0
    assert list((tmp_path / "runs/mine").glob("**/adapter_model.safetensors"))

"""``recipes new`` writes a configuration that validates, and overwrites nothing."""

import pytest
import yaml

from automodel_recipes.cli import main

MODEL = "pkg://automodel_recipes/assets/tiny_llama"
ROWS = "pkg://automodel_recipes/assets/orders/train.jsonl"
HELD_OUT = "pkg://automodel_recipes/assets/orders/heldout.jsonl"


@pytest.mark.parametrize("full", [False, True])
def test_what_it_writes_validates(tmp_path, monkeypatch, full):
    monkeypatch.chdir(tmp_path)
    options = ["--full"] if full else ["--validation", HELD_OUT]
    assert main(["recipes", "new", "mine", "--model", MODEL, "--data", ROWS, *options]) == 0
    assert main(["validate", "mine.yaml"]) == 0
    values = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert ("peft" in values) is not full
    if full:
        assert "validation_dataset" not in values
    else:
        assert values["validation_dataset"] == values["dataset"] | {"path_or_dataset_id": HELD_OUT}
    assert values["checkpoint"]["checkpoint_dir"] == "runs/mine"


def test_choices_follow_the_rows_and_the_gpu_and_say_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "new", "mine", "--model", MODEL, "--data", ROWS, "--gpu", "h100"]) == 0
    text = (tmp_path / "mine.yaml").read_text()
    values = yaml.safe_load(text)
    # Orders have 28 tokens on average and 64 at most: packing pays.
    assert values["dataset"]["seq_length"] == 64
    assert values["packed_sequence"]["packed_sequence_size"] == 512
    assert values["model"]["dtype"] == "bfloat16"
    assert values["peft"]["lora_dtype"] == "float32"
    scheduler = values["step_scheduler"]
    assert scheduler["global_batch_size"] % scheduler["local_batch_size"] == 0
    assert values["optimizer"]["lr"] == 2e-4
    lines = text.splitlines()
    for section in ("packed_sequence", "step_scheduler", "optimizer", "loss_fn"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{section}:"))
        assert lines[at - 1].startswith("# ")
    assert "on h100, by `plan`" in text


def test_a_large_model_on_a_small_gpu_is_checkpointed_or_refused_in_words(tmp_path, monkeypatch, capsys):
    from automodel_recipes.gpus import Gpu
    from automodel_recipes.plan.choose import choose
    from automodel_recipes.starter import starter_config

    config = starter_config("mine", model=MODEL, data="nowhere/rows", full=True)
    comments = choose(config, gpu=Gpu("toy", 1.02, 1.0, ("TOY",)))
    assert config["distributed"]["activation_checkpointing"] is True
    assert config["step_scheduler"]["local_batch_size"] == 1
    assert "1.02" not in comments["step_scheduler"]
    assert "on toy" in comments["step_scheduler"]
    assert "data check" in comments["dataset"]
    assert main(["recipes", "new", "other", "--model", MODEL, "--data", ROWS, "--gpu", "h999"]) == 2
    assert "h200" in capsys.readouterr().err


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

"""RUN, RUN@best and RUN@STEP wherever a command takes a checkpoint."""

import json

import pytest
import torch

import resuming
from automodel_recipes.cli import main
from automodel_recipes.places import checkpoint_path, find_place


@pytest.fixture(scope="module")
def run(tiny_model, chat_rows, tmp_path_factory):
    """A LoRA run with checkpoints at steps 2 and 4."""
    path = tmp_path_factory.mktemp("places") / "my run"
    data = {"_target_": "chat", "path_or_dataset_id": str(chat_rows), "seq_length": 64}
    config = {
        "seed": 7,
        "device": "cpu",
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 4, "max_steps": 4, "ckpt_every_steps": 2},
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(tiny_model),
            "dtype": "float32",
        },
        "peft": {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4},
        "dataset": data,
        "validation_dataset": data,
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 1.0},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(path), "best_metric_key": "val"},
    }
    config["step_scheduler"]["val_every_steps"] = 2
    resuming.run(config)
    return path


def test_marks_name_checkpoints(run):
    assert checkpoint_path(f"{run}@2") == f"{run}/step-00000002"
    assert checkpoint_path(f"{run}@latest") == checkpoint_path(str(run)) == f"{run}/step-00000004"
    assert checkpoint_path(f"{run}@best") in (f"{run}/step-00000002", f"{run}/step-00000004")
    assert checkpoint_path(f"{run}/step-00000002") == f"{run}/step-00000002"
    assert find_place(f"{run}@2").path == f"{run}/step-00000002"
    assert find_place(str(run)).kind == "adapter"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{run}@7", "has no checkpoint '7'. Checkpoints there: step-00000002, step-00000004."),
        ("{run}x@best", "no directory"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "resume"])
def test_a_mark_that_names_nothing(run, capsys, tmp_path, place, message, command):
    argument = place.format(run=run)
    words = ["ckpt", "verify", argument] if command == "verify" else resumed(run, argument, tmp_path / "new")
    assert main(words) == 2
    assert message in capsys.readouterr().err


def resumed(run, place, directory):
    return ["train", str(run / "config.yaml"), f"checkpoint.checkpoint_dir={directory}", "--resume", place, "--quiet"]


def test_checkpoint_commands_take_marks(run, capsys):
    assert main(["ckpt", "verify", f"{run}@2"]) == 0
    assert main(["ckpt", "verify", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step-00000002: intact" in out
    assert "step-00000004: intact" in out
    assert main(["ckpt", "diff", f"{run}@2", f"{run}@2"]) == 0
    assert main(["ckpt", "diff", f"{run}@2", str(run)]) == 1


def test_merging_a_checkpoint_adds_that_checkpoints_adapter(run, tmp_path, tiny_model):
    from safetensors.torch import load_file

    def changes(place, name):
        assert main(["ckpt", "merge", place, "-o", str(tmp_path / name)]) == 0
        merged = load_file(tmp_path / name / "model.safetensors")
        return {
            key: (merged[key] - tensor).norm() for key, tensor in load_file(tiny_model / "model.safetensors").items()
        }

    two, four, finished = (changes(f"{run}{mark}", f"m{i}") for i, mark in enumerate(("@2", "@4", "")))
    key = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < two[key] != four[key]
    assert torch.equal(torch.stack(list(four.values())), torch.stack(list(finished.values())))


def test_going_on_from_a_mark(run, tmp_path):
    def weights(directory):
        return (directory / "final" / "adapter_model.safetensors").read_bytes()

    assert main(resumed(run, f"{run}@2", tmp_path / "again")) == 0
    assert weights(tmp_path / "again") == weights(run)
    from_config = [*resumed(run, "never", tmp_path / "other"), f"checkpoint.restore_from={run}@2"]
    assert main(from_config) == 0
    assert weights(tmp_path / "other") == weights(run)


def test_a_run_cannot_be_rewound_in_its_own_directory(run, capsys):
    assert main(resumed(run, f"{run}@2", run)) == 2
    assert "holds step-00000004 after step-00000002. Go on from there into another directory" in capsys.readouterr().err


def test_answers_of_a_checkpoint(run, capsys):
    assert main(["generate", f"{run}@2", "--prompt", "count abc", "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "count abc"

"""A vision-language run through the command line: however the batch is split, and stopped in the middle or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comparing import weight_change_difference
from tiny_vlm import build_model, build_processor

pytestmark = pytest.mark.more
TRACED = ("loss", "grad_norm", "lr", "num_label_tokens")


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL with its processor, as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("tiny-vlm")
    processor = build_processor("qwen2_5_vl")
    processor.save_pretrained(path)
    build_model("qwen2_5_vl", processor.tokenizer).save_pretrained(path)
    return path


@pytest.fixture
def config(tiny_vlm: Path) -> dict[str, Any]:
    """Six steps over rows with and without images, a partial last window in each epoch."""
    return {
        "recipe": "VLMFinetuneRecipe",
        "seed": 7,
        "device": "cpu",
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 8, "num_epochs": 2},
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained",
            "pretrained_model_name_or_path": str(tiny_vlm),
            "dtype": "float32",
        },
        "loss_fn": {"_target_": "masked_ce"},
        "dataset": {"_target_": "mock_vlm", "num_samples": 21, "image_size": 40, "text_only_every": 3},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05},
        "checkpoint": {"enabled": False},
    }


def test_8x1_equals_2x4_equals_1x8(cli: Any, config: dict[str, Any], tiny_vlm: Path) -> None:
    reference = cli(config, "8x1")
    before = load_file(tiny_vlm / "model.safetensors")
    assert len(reference.train("loss")) == 6
    for local in (2, 1):
        config["step_scheduler"]["local_batch_size"] = local
        run = cli(config, f"{local}x{8 // local}")
        for key in ("loss", "grad_norm"):
            assert run.train(key) == pytest.approx(reference.train(key), rel=1e-5)
        assert run.train("num_label_tokens") == reference.train("num_label_tokens")
        assert weight_change_difference(before, reference.weights(), run.weights()) <= 1e-4


LORA = {"_target_": "lora", "target_modules": ["*language_model*_proj"], "dim": 4, "dropout": 0.1}


@pytest.mark.parametrize("case", ["full", "lora", "packed"])
def test_a_run_that_is_stopped_and_resumed_is_bit_identical(cli: Any, config: dict[str, Any], case: str) -> None:
    config["step_scheduler"].update(local_batch_size=2, val_every_steps=2)
    config["validation_dataset"] = {**config["dataset"], "num_samples": 5, "seed": 1}
    config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
    config["lr_scheduler"] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2}
    config["dataloader"] = {"num_workers": 1 if case == "full" else 0}
    if case == "lora":
        config["peft"] = LORA
    if case == "packed":
        config["packed_sequence"] = {"packed_sequence_size": 128}
        config["step_scheduler"].update(global_batch_size=2, local_batch_size=1)
    config["checkpoint"] = {"enabled": True}
    straight = cli(config, "straight")
    steps = len(straight.train("loss"))
    assert steps >= 4
    cli(config, "stopped", "--max-steps", str(steps // 2))
    resumed = cli(config, "stopped", "--resume", "auto")
    for key in TRACED:
        assert [float(x).hex() for x in resumed.train(key)] == [float(x).hex() for x in straight.train(key)], key
    expected = straight.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())

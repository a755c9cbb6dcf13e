"""Two processes with images and text-only rows mixed train like one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        pytest.param("qwen2_5_vl", "ddp", marks=pytest.mark.more),
        pytest.param("qwen2_5_vl", "fsdp2", marks=pytest.mark.more),
        pytest.param("llava", "ddp", marks=pytest.mark.more),
        pytest.param("phi4_mm", "fsdp2", marks=pytest.mark.long),
        pytest.param("gemma3", "ddp", marks=pytest.mark.long),
    ],
)
def test_two_processes_are_one_with_images_and_text_mixed(
    family: str, strategy: str, families: Any, tmp_path: Path
) -> None:
    processor, model = families(family)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    runs = {}
    for count in (1, 2):
        out = tmp_path / f"run{count}"
        config = {
            "recipe": "VLMFinetuneRecipe",
            "seed": 3,
            "device": "cpu",
            "model": {
                "_target_": "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained",
                "pretrained_model_name_or_path": str(tmp_path / "model"),
                "dtype": "float32",
            },
            "dataset": {"_target_": "mock_vlm", "num_samples": 10, "image_size": 32, "text_only_every": 2},
            "dataloader": {"shuffle": False},
            "step_scheduler": {"global_batch_size": 4, "local_batch_size": 1, "num_epochs": 2, "max_steps": 5},
            "distributed": {"strategy": strategy if count > 1 else "none"},
            "freeze_config": {"freeze_audio_tower": True} if family == "phi4_mm" else {},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "checkpoint": {"enabled": False, "checkpoint_dir": str(out)},
        }
        path = tmp_path / f"{count}.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "automodel_recipes", "train", str(path), "--nproc-per-node", str(count)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        runs[count] = [(row["loss"], row["grad_norm"]) for row in rows if row["kind"] == "train"]
    assert len(runs[1]) == 5
    for one, two in zip(runs[1], runs[2], strict=True):
        assert two == pytest.approx(one, rel=1e-5)

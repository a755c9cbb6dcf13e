"""What the cross-package tests share: a tiny model on disk, small data, and runs through the real command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

VOCABULARY = 96


@dataclass(frozen=True)
class Run:
    """One finished run of the command line."""

    path: Path
    exit_code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def train(self, key: str) -> list[float]:
        return [row[key] for row in self.rows if row["kind"] == "train"]

    def weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        (file,) = sorted((self.path / "final").glob("*.safetensors"))
        return load_file(file)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a character tokenizer and a chat template, as a Hugging Face directory."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny-model")
    characters = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"] + [chr(c) for c in range(32, 32 + 91)]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>"
        "{% generation %}{{ m['content'] }}</s>{% endgeneration %}{% else %}<|user|>{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def chat_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one chats of ragged length: with a global batch of 8 the last window of an epoch holds 5."""
    path = tmp_path_factory.mktemp("chats") / "train.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": "count " + "abc " * (1 + i % 5)},
                {"role": "assistant", "content": "x" * (1 + (7 * i) % 23)},
            ]
        }
        for i in range(21)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tiny_config(tiny_model: Path, chat_rows: Path) -> dict[str, Any]:
    """A full-parameter fine-tune of the tiny model: six steps, two epochs, a partial last window in each."""
    return {
        "recipe": "LLMFinetuneRecipe",
        "seed": 7,
        "device": "cpu",
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 8, "num_epochs": 2},
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(tiny_model),
            "dtype": "float32",
        },
        "loss_fn": {"_target_": "masked_ce"},
        "dataset": {"_target_": "chat", "path_or_dataset_id": str(chat_rows), "seq_length": 128},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "clip_grad_norm": {"max_norm": 1.0},
        "checkpoint": {"enabled": False},
    }


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration into this test's directory."""

    def write(config: dict[str, Any], name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return write


@pytest.fixture
def cli(tmp_path: Path, write_yaml: Callable[..., Path]) -> Callable[..., Run]:
    """Run ``automodel-recipes train`` in a process of its own; fails the test on a non-zero exit unless told."""

    def run(config: dict[str, Any], name: str, *arguments: str, check: bool = True) -> Run:
        out = tmp_path / name
        config = {**config, "checkpoint": {**config.get("checkpoint", {}), "checkpoint_dir": str(out)}}
        path = write_yaml(config, f"{name}.yaml")
        done = subprocess.run(
            [sys.executable, "-m", "automodel_recipes", "train", str(path), *arguments],
            text=True,
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            timeout=900,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return Run(out, done.returncode, done.stdout, done.stderr)

    return run

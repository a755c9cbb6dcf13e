"""What the command line prints at the start, during and at the end of a run, as a user reads it in a pipe."""

import hashlib
import re

import pytest

LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4}


@pytest.fixture(scope="module")
def screen(tiny_model, chat_rows, tmp_path_factory):
    """The labelled lines of one run with LoRA, kernels, packing and checkpoints; and its file."""
    import os
    import subprocess
    import sys

    import yaml

    folder = tmp_path_factory.mktemp("screen")
    config = {
        "seed": 7,
        "device": "cpu",
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 2, "max_steps": 4},
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(tiny_model),
            "dtype": "float32",
        },
        "peft": LORA,
        "kernels": {"ops": ["rms_norm"]},
        "packed_sequence": {"packed_sequence_size": 64},
        "dataset": {"_target_": "chat", "path_or_dataset_id": str(chat_rows), "seq_length": 64},
        "validation_dataset": {"_target_": "chat", "path_or_dataset_id": str(chat_rows), "seq_length": 64},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "lr_scheduler": {"lr_warmup_steps": 1, "min_lr": 0},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(folder / "out")},
    }
    path = folder / "my config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "automodel_recipes", "train", str(path), "optimizer.lr=0.05", "--seed", "8"]
    done = subprocess.run(command, capture_output=True, timeout=600, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr.decode()
    lines: dict[str, list[str]] = {}
    for line in done.stdout.decode().splitlines():
        label, _, text = line.partition(" ")
        lines.setdefault(label, []).append(text.strip())
    return lines, path, done


def test_config_line_has_the_hash_of_the_file_and_the_overrides(screen):
    lines, path, _ = screen
    assert lines["config"] == [f"{path} (sha {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}) + 2 overrides"]


def test_model_line(screen, tiny_model):
    (line,) = screen[0]["model"]
    assert re.fullmatch(
        re.escape(str(tiny_model)) + r" float32, [\d.,]+ [kM] params, trainable [\d,.]+( k)? \(.* %\)", line
    )


def test_device_line_tells_attention_kernels_and_what_is_off(screen):
    (line,) = screen[0]["device"]
    assert line.startswith("1x cpu | attention sdpa | fused: rms_norm (PyTorch twins: ")
    assert line.endswith(" | off: fp8, compile (not requested)")


def test_data_line(screen):
    (line,) = screen[0]["data"]
    assert re.fullmatch(
        r"train 21 rows, \d+ tokens, supervised [\d.]+ %, truncated 0 %, p95 \d+, longest \d+, "
        r"stop token trained in 100 %, packs [\d.]+ % full",
        line,
    )


def test_batch_line_tells_the_schedule(screen):
    (line,) = screen[0]["batch"]
    assert re.fullmatch(
        r"2 local x 2 accumulation x 1 dp = 4 \| \d+ steps/epoch, 4 in all \| warm-up 1 -> lr 0.05 -> cosine 0", line
    )


def test_sample_line_marks_what_is_trained(screen):
    text = screen[0]["sample"][0].replace(" ", "")
    assert text == "<|user|>countabc<|assistant|>«x</s>»"


def test_checks_before_the_first_step(screen):
    checks = screen[0]["check"]
    assert re.fullmatch(r"val loss at step 0: [\d.]+, perplexity [\d.]+.*", checks[0])
    assert re.fullmatch(r"checkpoint write \+ reload ok \([\d.]+ s\) \| weights load in PEFT \([\d.]+ s\)", checks[1])
    assert not list((screen[1].parent / "out").glob(".start-check*"))


def test_a_pipe_gets_plain_text(screen):
    _, _, done = screen
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stdout + done.stderr
    assert b"Warning" not in done.stderr


def test_the_printed_next_commands_run(screen):
    import shlex
    import subprocess
    import sys

    commands = [shlex.split(text) for text in screen[0]["next"]]
    assert {tuple(words[:2]) for words in commands} >= {("automodel-recipes", "chat"), ("automodel-recipes", "ckpt")}
    merge = next(words for words in commands if words[1] == "ckpt")
    done = subprocess.run([sys.executable, "-m", "automodel_recipes", *merge[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Every Python block of the README runs, in order, with the objects that its text presumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).float()


@pytest.fixture
def given(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has: a file of chats, a tokenizer, a model, and this process's rank."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in range(80)
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"tokenizer": tokenizer, "model": model, "rank": 0, "world": 1, "torch": torch}


def run(number: int, names: dict[str, Any]) -> None:
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), names)


def test_our_own_blocks_run_one_after_another(given: dict[str, Any]) -> None:
    assert len(BLOCKS) == 5
    for number in range(4):
        run(number, given)
    assert (given["state"]["epoch"], given["dataset"].report.num_kept) == (1, 80)
    assert next(iter(given["mixed"]))["sample_id"] == 0
    assert given["packed"].utilisation > 0


@pytest.mark.more
def test_the_block_of_other_trainers_runs(given: dict[str, Any]) -> None:
    pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from transformers import Trainer, TrainingArguments

    from automodel_data import default_collater

    common: dict[str, Any] = {"max_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    run(0, given)
    run(2, given)
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 16}
    given |= {
        "trainer": Trainer(given["model"], TrainingArguments("out", **sizes, **common)),
        "Trainer": Trainer,
        "args": TrainingArguments("out", remove_unused_columns=False, **common),
        "SFTTrainer": trl.SFTTrainer,
        "SFTConfig": lambda *_, **keys: trl.SFTConfig("out", **common, **keys),
        "default_collater": default_collater,
    }
    run(4, given)


def test_the_shell_commands_exist() -> None:
    from automodel_data.cli import _parser

    commands = re.findall(r"^automodel-data (.*?)(?: +#.*)?$", README, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        _parser().parse_args(command.split())

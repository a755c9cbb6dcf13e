"""The same fine-tune under Automodel, TRL and the Hugging Face Trainer, in turns on one machine.

    python benchmarks/peers.py [--rows train.jsonl] [--steps 10] [--repeats 3] [--markdown FILE]

Every stack gets the same random Llama (28 M parameters, vocabulary 49,152), the same chats in the same order, the same
AdamW and batch, and prepares the rows in its own way: Automodel and TRL from messages, the Trainer from rows that carry
the same mask. Each run is a process of its own. ``tokens/s`` counts tokens that are no padding, from the third step on;
``peak RSS`` is the process's. Losses of the first steps are compared: a stack that trains something else gets no time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "packages/automodel-recipes/src/automodel_recipes/assets"
STACKS = ("automodel", "trl", "trainer")
BATCH, SKIPPED = 8, 2
LR = 1e-4


def make_model(folder: Path) -> None:
    """A Llama of 28 M parameters with the tiny tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6,
        vocab_size=49152, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ASSETS / "tiny_llama").save_pretrained(folder)
    # Entries without merges, which no text gives: the tokenizer is as large as the embedding, as a real one is.
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    first = 1 + max(*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"]))
    content["model"]["vocab"] |= {f"<unused {i}>": i for i in range(first, config.vocab_size)}
    file.write_text(json.dumps(content))


def automodel(model: Path, rows: Path, steps: int, out: Path) -> dict[str, Any]:
    """The recipe, as the command line runs it."""
    from automodel_core.config import config_from_dict
    from automodel_recipes import LLMFinetuneRecipe, TrainOptions

    config = {
        "device": "cpu",
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(model),
            "dtype": "float32",
        },
        "loss_fn": {"_target_": "fused_linear_ce"},
        "dataset": {"_target_": "chat", "path_or_dataset_id": str(rows)},
        "packed_sequence": None,
        "dataloader": {"shuffle": False},
        "step_scheduler": {"global_batch_size": BATCH, "local_batch_size": BATCH, "max_steps": steps},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": LR, "weight_decay": 0.0},
        "checkpoint": {"checkpoint_dir": str(out), "save_consolidated": False, "enabled": True, "read_back": False},
    }
    recipe = LLMFinetuneRecipe(config_from_dict(config), TrainOptions(quiet=True))
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    return {
        "losses": [row["loss"] for row in train],
        "tokens": [row["num_tokens"] for row in train],
        "seconds": [row["step_time_s"] for row in train],
    }


def arguments(kind: type, out: Path, steps: int, **more: Any) -> Any:
    """Settings that TRL and the Trainer share."""
    return kind(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LR, weight_decay=0.0,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False,
        max_grad_norm=1.0, **more,
    )  # fmt: skip


def clocked(trainer: Any, lengths: list[int]) -> dict[str, Any]:
    """Train, with the wall clock at the end of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *args: Any, **keys: Any) -> None:
            if not self.times:
                self.times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **keys: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "losses": losses,
        "tokens": [sum(lengths[i : i + BATCH]) for i in range(0, len(losses) * BATCH, BATCH)],
        "seconds": [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)],
    }


def messages(rows: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(rows), split="train")


def trl(model: Path, rows: Path, steps: int, out: Path) -> dict[str, Any]:
    """SFTTrainer from messages, training on the assistant alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = arguments(SFTConfig, out, steps, assistant_only_loss=True, shuffle_dataset=False, max_length=None)
    trainer = SFTTrainer(network, args=config, train_dataset=messages(rows), processing_class=tokenizer)
    return clocked(trainer, [len(row["input_ids"]) for row in trainer.train_dataset])


def trainer(model: Path, rows: Path, steps: int, out: Path) -> dict[str, Any]:
    """transformers.Trainer over padded rows with -100 outside the answers."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        marked = zip(made["input_ids"], made["assistant_masks"], strict=True)
        return {"input_ids": made["input_ids"], "labels": [token if mark else -100 for token, mark in marked]}

    data = messages(rows).map(encode, remove_columns=["messages"])
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer)
    run = Trainer(network, arguments(TrainingArguments, out, steps), train_dataset=data, data_collator=collate)
    return clocked(run, [len(ids) for ids in data["input_ids"]])


def child(stack: str, model: Path, rows: Path, steps: int) -> None:
    """One measured run; prints a JSON object as the last line."""
    with tempfile.TemporaryDirectory() as out:
        found = globals()[stack](model, rows, steps, Path(out) / "run")
    with open("/proc/self/status") as status:
        found["peak_rss_mib"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    print(json.dumps(found))


def measure(stack: str, model: Path, rows: Path, steps: int) -> dict[str, Any]:
    """Run one stack in a process of its own."""
    command = [sys.executable, __file__, "--child", stack, "--model", model, "--rows", rows, "--steps", steps]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{stack} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["tokens_per_s"] = sum(found["tokens"][SKIPPED:]) / sum(found["seconds"][SKIPPED:])
    return found


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and ratios to the Trainer."""
    median = {
        stack: {key: statistics.median(run[key] for run in found) for key in ("tokens_per_s", "peak_rss_mib")}
        for stack, found in runs.items()
    }
    base = median["trainer"]
    reference = runs["trainer"][0]["losses"]
    rows = {}
    for stack, values in median.items():
        losses = runs[stack][0]["losses"]
        worst = max(abs(a - b) / b for a, b in zip(losses, reference, strict=True))
        rows[stack] = {
            **{key: round(value, 1) for key, value in values.items()},
            "speed_ratio": round(values["tokens_per_s"] / base["tokens_per_s"], 2),
            "rss_ratio": round(values["peak_rss_mib"] / base["peak_rss_mib"], 2),
            "last_loss": round(losses[-1], 4),
            "largest_loss_difference": float(f"{worst:.1e}"),
        }
        if worst > 1e-3:
            rows[stack] |= {"tokens_per_s": None, "speed_ratio": None}
    return rows


def table(rows: dict[str, Any], versions: dict[str, str]) -> str:
    """The rows as Markdown."""
    lines = [
        "| stack | tokens/s | x Trainer | peak RSS MiB | x Trainer | last loss | largest relative loss difference |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for stack, row in rows.items():
        name = f"{stack} {versions[stack]}"
        lines.append(
            f"| {name} | {row['tokens_per_s']} | {row['speed_ratio']} | {row['peak_rss_mib']} | {row['rss_ratio']} | "
            f"{row['last_loss']} | {row['largest_loss_difference']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure in turns, print."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ASSETS / "orders/train.jsonl")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", choices=STACKS)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.model, options.rows, options.steps)
        return
    runs: dict[str, list[dict[str, Any]]] = {stack: [] for stack in STACKS}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for _ in range(options.repeats):
            for stack in STACKS:
                runs[stack].append(measure(stack, Path(folder), options.rows, options.steps))
    rows = summary(runs)
    versions = {
        "automodel": version("automodel-recipes"),
        "trl": version("trl"),
        "trainer": f"(transformers {version('transformers')})",
    }
    print(json.dumps({"benchmark": "peers", "versions": versions, "rows": rows}))
    print(text := table(rows, versions))
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()

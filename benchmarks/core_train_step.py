"""A train step of a 28 M-parameter Llama on short chat rows: bare transformers loop against this package's parts.

All train the same rows with AdamW. ``automodel`` flattens the rows without padding, computes label-only logits and uses
torch's fused AdamW; ``lean`` also recomputes each block's activations in backward, and takes smaller chunks of logits.
Speeds are tokens per second of CPU time in one process, variants in turn; peak memory comes from a process each, which
imports only what its variant needs. Prints one JSON row.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

KINDS = ("transformers", "automodel", "lean")
CONFIG = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 49152,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip


def rows(seed: int, batch: int = 4) -> list[tuple[list[int], list[int]]]:
    """Prompts of 20 to 120 tokens with answers of 10 to 40: lengths of short chat data."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batch):
        prompt, answer = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((20, 120), (10, 40)))
        ids = torch.randint(0, CONFIG["vocab_size"], (prompt + answer,), generator=rng).tolist()
        made.append((ids, [-100] * prompt + ids[prompt:]))
    return made


def padded(made: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """What a usual collator gives."""
    width = max(len(ids) for ids, _ in made)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, labels in made:
        missing = width - len(ids)
        columns["input_ids"].append(ids + [0] * missing)
        columns["attention_mask"].append([1] * len(ids) + [0] * missing)
        columns["labels"].append(labels + [-100] * missing)
    return {key: torch.tensor(value) for key, value in columns.items()}


def flattened(made: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """One row without padding; positions restart, and with them attention."""
    columns: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in made:
        columns["input_ids"] += ids
        columns["labels"] += [-100, *labels[1:]]
        columns["position_ids"] += range(len(ids))
    return {key: torch.tensor([value]) for key, value in columns.items()}


class Bare:
    """The loop that anybody would write with transformers alone."""

    def __init__(self) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**CONFIG)
        self.model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0)

    def loss(self, made: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        return self.model(**padded(made), use_cache=False).loss

    def step(self, made: list[tuple[list[int], list[int]]]) -> float:
        """Forward, backward, update; returns the loss."""
        loss = self.loss(made)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


class Ours(Bare):
    """The same steps from this package's parts."""

    def __init__(self, *, lean: bool) -> None:
        from automodel_core import NeMoAutoModelForCausalLM
        from automodel_core.loss import FusedLinearCrossEntropy
        from automodel_core.optim import build_optimizer

        self.model = NeMoAutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa")
        self.optimizer = build_optimizer(self.model, torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)
        self.loss_fn = FusedLinearCrossEntropy(chunk_len=32 if lean else None)
        if lean:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def loss(self, made: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        from automodel_core.loss import count_label_tokens, forward_loss, shift_labels

        batch = shift_labels(flattened(made))
        return forward_loss(self.model, batch, self.loss_fn, count_label_tokens([batch]))


def build(kind: str) -> Bare:
    torch.manual_seed(0)
    return Bare() if kind == "transformers" else Ours(lean=kind == "lean")


def peak_rss_mib() -> float:
    """Largest resident set of this process; ``ru_maxrss`` would begin with that of the process that started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def child(kind: str, num_steps: int) -> None:
    loop = build(kind)
    for seed in range(num_steps):
        loop.step(rows(seed))
    print(peak_rss_mib())


def peak_mib(kind: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--child", kind], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--child", default=None)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.steps)
        return
    loops = {kind: build(kind) for kind in KINDS}
    speeds: dict[str, list[float]] = {kind: [] for kind in loops}
    worst = 0.0
    for seed in range(args.steps + 1):
        made, losses = rows(seed), {}
        for kind, loop in loops.items():
            start = time.process_time()
            losses[kind] = loop.step(made)
            if seed:
                speeds[kind].append(sum(len(ids) for ids, _ in made) / (time.process_time() - start))
        worst = max(worst, *(abs(loss - losses["transformers"]) / losses["transformers"] for loss in losses.values()))
    memory = {kind: peak_mib(kind) for kind in loops}
    median = {kind: statistics.median(values) for kind, values in speeds.items()}
    row = {
        "benchmark": "core_train_step", "parameters": sum(p.numel() for p in loops["automodel"].model.parameters()),
        "speed_ratio": {kind: round(median[kind] / median["transformers"], 3) for kind in KINDS[1:]},
        "peak_rss_ratio": {kind: round(memory[kind] / memory["transformers"], 3) for kind in KINDS[1:]},
        "largest_relative_loss_difference": worst, "threads": torch.get_num_threads(),
        "tokens_per_s": {kind: round(value, 1) for kind, value in median.items()},
        "peak_rss_mib": {kind: round(value) for kind, value in memory.items()},
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()

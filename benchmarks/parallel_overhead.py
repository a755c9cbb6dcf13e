"""What FSDP2 costs on one GPU against a bare loop, and what prefetching and compiling change; one JSON row a variant.

    python benchmarks/parallel_overhead.py [--layers 16] [--hidden 2048] [--steps 20]

Every variant trains the same random Llama on the same batch in one process; rounds are interleaved, so that a change of
clock or load meets all of them. ``ratio`` is the median step time over that of the bare loop. It needs a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_parallel import build_manager, init_distributed, shutdown

BF16 = {"param_dtype": "bfloat16", "reduce_dtype": "float32"}
VARIANTS: dict[str, dict[str, object]] = {
    "bare": {"strategy": "none"},
    "fsdp2": {"strategy": "fsdp2", "mp_policy": BF16},
    "fsdp2 prefetch": {"strategy": "fsdp2", "mp_policy": BF16, "forward_prefetch": 2, "backward_prefetch": 2},
    "fsdp2 zero2": {"strategy": "fsdp2", "mp_policy": BF16, "reshard_after_forward": False},
    "fsdp2 compile": {"strategy": "fsdp2", "mp_policy": BF16, "compile": True},
}


class Trained:
    """A model under a variant, and its step."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.context = build_manager(**VARIANTS[name]).setup(init_distributed())
        self.autocast = name == "bare"
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=arguments.hidden,
            intermediate_size=4 * arguments.hidden,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden // 64,
            num_key_value_heads=arguments.hidden // 128,
        )
        torch.manual_seed(0)
        self.model, _ = self.context.parallelize(LlamaForCausalLM(config))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.ids = torch.randint(32000, (4, 1024), device=self.context.device)

    def step_s(self) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
            logits = self.model(input_ids=self.ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.ids.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 16), ("hidden", 2048), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("parallel_overhead.py measures CUDA devices, and this machine has none.")
    runs = {name: Trained(name, arguments) for name in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(5 + arguments.steps):
        for name, run in runs.items():
            seconds = run.step_s()
            if round_number >= 5:  # compilation, allocator and autotuning are done by then
                times[name].append(seconds)
    bare = statistics.median(times["bare"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = {"variant": name, "step_ms": round(1000 * median, 2), "ratio": round(median / bare, 4)}
        print(json.dumps({**row, "gpu": torch.cuda.get_device_name(), "torch": str(torch.__version__)}))
    shutdown()


if __name__ == "__main__":
    main()

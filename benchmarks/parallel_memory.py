"""Bytes of weights, gradients and optimizer state that each rank holds, against one process; one JSON row per layout.

    python benchmarks/parallel_memory.py

Counts tensors, so it says the same on any machine. ``ratio`` is this layout's bytes over those of one process.
"""

from __future__ import annotations

import json
import os
import socket

import torch
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_parallel import build_manager, init_distributed, shutdown

LAYOUTS = {
    "one process": {"strategy": "none"},
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "tp": {"strategy": "fsdp2", "tp_size": 2},
    "pp": {"strategy": "fsdp2", "pp_size": 2},
}


def held_bytes(settings: dict[str, object]) -> int:
    context = build_manager(**settings).setup(init_distributed(device="cpu"))
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    model, _ = context.parallelize(LlamaForCausalLM(config))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    batch = {"input_ids": torch.ones(2, 16, dtype=torch.long)}
    if context.pipeline is None:
        model(**batch).logits.sum().backward()
    else:
        labels = {"shift_labels": torch.ones(2, 16, dtype=torch.long)}
        context.pipeline.step([batch | labels] * 2, lambda logits, _, n: logits.sum() / n, 1)
    optimizer.step()
    tensors = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in local)


def main(rank: int, world_size: int, port: int, names: list[str], results: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    results.put({name: held_bytes(LAYOUTS[name]) for name in names})
    shutdown()


def largest_rank(world_size: int, names: list[str]) -> dict[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(main, (world_size, port, names, results), nprocs=world_size)
    ranks = [results.get() for _ in range(world_size)]
    return {name: max(rank[name] for rank in ranks) for name in names}


if __name__ == "__main__":
    alone, *shared = LAYOUTS
    whole = largest_rank(1, [alone])[alone]
    for layout, held in largest_rank(2, shared).items():
        print(json.dumps({"layout": layout, "ranks": 2, "bytes": held, "ratio": round(held / whole, 3)}))

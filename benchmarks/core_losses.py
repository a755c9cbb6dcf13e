"""Fused-linear cross-entropy against a plain head and ``F.linear_cross_entropy``: time and extra peak memory.

Every variant runs in a process of its own for memory; times are CPU times of one process, variants in turn, so that
other work on the machine does not decide.
Prints one JSON row per comparison. ``python benchmarks/core_losses.py [--tokens 2048]``
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from automodel_core.loss import FusedLinearCrossEntropy

Step = Callable[[], None]


def steps(tokens: int, hidden: int, vocab: int, masked: float) -> dict[str, Step]:
    """Forward and backward of each variant on the same inputs."""
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=rng, requires_grad=True)
    weight = (torch.randn(vocab, hidden, generator=rng) / hidden**0.5).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=rng)
    labels[torch.rand(tokens, generator=rng) < masked] = -100
    count = (labels != -100).sum()
    fused = FusedLinearCrossEntropy()

    def timed(loss: Callable[[], torch.Tensor]) -> Step:
        def step() -> None:
            states.grad = weight.grad = None
            loss().backward()

        return step

    variants = {
        "naive": timed(lambda: F.cross_entropy(states @ weight.t(), labels, reduction="sum") / count),
        "fused_linear": timed(lambda: fused(states, labels, count, weight=weight)),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        variants["torch_chunked"] = timed(lambda: F.linear_cross_entropy(states, weight, labels, options=options))
        variants["torch_plain"] = timed(lambda: F.linear_cross_entropy(states, weight, labels))
    return variants


def peak_extra_mib(variant: str, sizes: list[str]) -> float:
    """Growth of the largest resident set over one step, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", variant, *sizes], check=True, capture_output=True, text=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def peak_rss_mib() -> float:
    """Largest resident set of this process; ``ru_maxrss`` would begin with that of the process that started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def child(variant: str, step: Step) -> None:
    before = peak_rss_mib()
    step()
    print(peak_rss_mib() - before)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--masked", type=float, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", default=None)
    args = parser.parse_args()
    if args.child:
        child(args.child, steps(args.tokens, args.hidden, args.vocab, args.masked)[args.child])
        return
    shape = {"tokens": args.tokens, "hidden": args.hidden, "vocab": args.vocab, "threads": torch.get_num_threads()}
    for masked in (0.0, 0.7) if args.masked is None else (args.masked,):
        variants = steps(args.tokens, args.hidden, args.vocab, masked)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for repeat in range(args.repeats + 1):
            for name, step in variants.items():
                start = time.process_time()
                step()
                if repeat:
                    times[name].append(time.process_time() - start)
        sizes = [f"--{key}={shape[key]}" for key in ("tokens", "hidden", "vocab")] + [f"--masked={masked}"]
        memory = {name: peak_extra_mib(name, sizes) for name in variants}
        ours = statistics.median(times["fused_linear"])
        for name in variants:
            speed = statistics.median(times[name]) / ours
            row = {"against": name, "masked": masked, "fused_linear_speed_ratio": round(speed, 3)}
            row |= {
                "memory_ratio": round(memory[name] / memory["fused_linear"], 2),
                "extra_mib": round(memory[name], 1),
            }
            print(json.dumps({"benchmark": "core_losses", **row, **shape}), flush=True)


if __name__ == "__main__":
    main()

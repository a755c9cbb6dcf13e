"""Fused linear cross-entropy on CPU: time and memory beside torch's ways, in one run.

    OMP_NUM_THREADS=1 python benchmarks/kernels_linear_ce.py                  # T 2048, H 256, V 32000, fp32
    python benchmarks/kernels_linear_ce.py --tokens 512 --vocab 16000

Prints JSON rows of ratios. Speed is interleaved in this process; memory is the peak of resident memory in a process of
its own for each implementation, minus what its inputs take.
"""

import argparse
import json
import subprocess
import sys

import torch

from automodel_kernels.bench import measure
from automodel_kernels.bench.cases import CASES
from automodel_kernels.bench.implementations import Missing, implementation
from automodel_kernels.bench.shapes import Shape

CASE = CASES["linear_ce"]
CPU = torch.device("cpu")


def main() -> None:
    """Print memory rows, then speed rows at 0 % and 70 % masked tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = Shape(T=args.tokens, V=args.vocab, H=args.hidden)
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, shape)))
        return
    sizes = {name: child(name, sys.argv[1:]) for name in ("torch", "ours")}
    row = {"what": "extra peak memory, forward and backward", "torch_mb": sizes["torch"] / 2**20}
    print(json.dumps(row | {"ours_mb": sizes["ours"] / 2**20, "torch_over_ours": sizes["torch"] / sizes["ours"]}))
    for valid in (1.0, 0.3):
        print(json.dumps(speed(shape, valid, args.repeats)), flush=True)


def memory(name: str, shape: Shape) -> int:
    """Bytes beyond the inputs in this fresh process."""
    inputs = CASE.make(shape, torch.float32, CPU, 0)
    small = CASE.make(Shape(T=8, V=64, H=16), torch.float32, CPU, 0)
    run = implementation(name, "linear_ce", CPU)
    measure.execute(run, small, CASE.leaves, True)  # loads code, so that only tensors are counted
    peak = measure.peak_bytes(run, inputs, CASE.leaves, True)
    if peak is None:
        raise SystemExit("this platform does not report the peak of resident memory")
    return peak


def child(name: str, arguments: list[str]) -> int:
    """Run :func:`memory` in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--memory-of", name]
    return int(subprocess.check_output(command, text=True).splitlines()[-1])


def speed(shape: Shape, valid: float, repeats: int) -> dict:
    """Median times and ratios at a share of labelled tokens; the loss of each is compared with torch's."""
    shape = Shape(T=shape.T, V=shape.V, H=shape.H, valid=valid)
    runs = {}
    for name in ("ours", "torch", "torch_fused", "trl"):
        try:
            runs[name] = implementation(name, "linear_ce", CPU)
        except Missing as reason:
            print(f"{name}: {reason}", file=sys.stderr)
    inputs = CASE.make(shape, torch.float32, CPU, 0)
    losses = {name: float(measure.execute(run, inputs, CASE.leaves, False)[0]) for name, run in runs.items()}
    times = measure.interleaved(runs, [inputs], CASE.leaves, True, repeats)
    row = {"what": "forward and backward", "valid": valid, "loss_spread": max(losses.values()) - min(losses.values())}
    row |= {f"{name}_ms": timing.p50 for name, timing in times.items()}
    return row | {f"{n}_over_ours": t.p50 / times["ours"].p50 for n, t in times.items() if n != "ours"}


if __name__ == "__main__":
    main()

"""``akbench run | compare | roofline``."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from automodel_kernels.bench import measure, rows
from automodel_kernels.bench.cases import CASES, Case
from automodel_kernels.bench.implementations import DEFAULT, NAMES, Missing, Run, implementation
from automodel_kernels.bench.roofline import Ceilings, measure_ceilings
from automodel_kernels.bench.shapes import Shape, parse_shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("fwd", "full")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for a wrong or slower row, 2 for a mistake in the arguments."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except ValueError as error:
        parser.exit(2, f"akbench: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="akbench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure ops and print a table")
    run.add_argument("--op", default="linear_ce,ce,rms_norm,swiglu,rope,lora", help=f"of {','.join(CASES)}")
    run.add_argument("--impl", default=",".join(DEFAULT), help=f"of {','.join(NAMES)}")
    run.add_argument("--shape", action="append", help="preset, or preset:key=value,... (may repeat)")
    run.add_argument("--dtype", help="of fp32,bf16,fp16 (fp32 on CPU, bf16 on CUDA)")
    run.add_argument("--mode", default="full", help="of fwd,full")
    run.add_argument("--repeats", type=int, default=5)
    run.set_defaults(run=_run)
    roofline = commands.add_parser("roofline", help="measure this machine's ceilings")
    roofline.set_defaults(run=_roofline)
    for command in (run, roofline):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--json", help="write rows here as they finish")
    compare = commands.add_parser("compare", help="hold one file of rows against another")
    compare.add_argument("old")
    compare.add_argument("new")
    compare.add_argument("--fail-ratio", type=float, default=0.97, help="least speed of new over old")
    compare.set_defaults(run=_compare)
    return parser


def _run(args: argparse.Namespace) -> int:
    device = torch.device(args.device)
    dtype_name = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    chosen = {
        "op": _choose(args.op, tuple(CASES), "--op"),
        "impl": _choose(args.impl, NAMES, "--impl"),
        "mode": _choose(args.mode, MODES, "--mode"),
        "dtype": _choose(dtype_name, tuple(DTYPES), "--dtype"),
    }
    shapes = [(text, parse_shape(text)) for text in args.shape or _default_shapes(device)]
    ceilings = measure_ceilings(device, [DTYPES[name] for name in chosen["dtype"]])
    fixed = rows.environment(device)
    found: list[dict[str, Any]] = []
    for op in chosen["op"]:
        for text, shape in shapes:
            for dtype in chosen["dtype"]:
                for row in _measure(CASES[op], shape, DTYPES[dtype], device, chosen, ceilings, args.repeats):
                    found.append({"shape": text, **row, **fixed})
                    _append(args.json, found[-1])
    sys.stdout.write(rows.table(found) + "\n")
    return 1 if any(row["status"] == "wrong" for row in found) else 0


def _measure(
    case: Case,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    chosen: dict[str, list[str]],
    ceilings: Ceilings,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """Rows of one op, shape and dtype: checked first, then timed together; a wrong result gets no time."""
    runs, facts = _checked(case, shape, dtype, device, chosen["impl"])
    sets = measure.input_sets(case, shape, dtype, device)
    dtype_name = str(dtype).removeprefix("torch.")
    for mode in chosen["mode"]:
        backward = mode == "full"
        peaks = {name: measure.peak_bytes(run, sets[0], case.leaves, backward) for name, run in runs.items()}
        timings = measure.interleaved(runs, sets, case.leaves, backward, repeats)
        flops, least = case.work(shape, dtype.itemsize, backward)
        floor = ceilings.floor_ms(flops, least, dtype_name)
        for name in chosen["impl"]:
            row = {"op": case.op, "impl": name, "mode": mode, "dtype": dtype_name, **facts[name]}
            row |= {"flops": flops, "min_bytes": least, "floor_ms": floor}
            if name in runs:
                timing = timings[name]
                row |= {f"ms_{key}": getattr(timing, key) for key in ("p20", "p50", "p80")}
                row |= {"n": timing.n, "spread": timing.spread, "pct_of_floor": 100 * floor / timing.p50}
                row |= {"tokens_per_s": 1e3 * shape.T / timing.p50, "peak_mb": _megabytes(peaks[name])}
            yield row


def _checked(
    case: Case, shape: Shape, dtype: torch.dtype, device: torch.device, names: list[str]
) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """The implementations whose results are right, and for each name its errors and status."""
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            run = implementation(name, case.op, device)
            found, fine = measure.errors(case, shape, dtype, device, run)
        except Missing as reason:
            facts[name] = {"status": "unsupported", "reason": str(reason)}
        except torch.OutOfMemoryError:
            facts[name] = {"status": "oom"}
        else:
            facts[name] = {"status": "ok" if fine else "wrong", "rel_err": found, "max_rel_err": max(found.values())}
            if fine:
                runs[name] = run
    return runs, facts


def _roofline(args: argparse.Namespace) -> int:
    device = torch.device(args.device)
    dtypes = [torch.float32] if device.type == "cpu" else list(DTYPES.values())
    ceilings = measure_ceilings(device, dtypes).to_dict()
    _append(args.json, ceilings)
    sys.stdout.write(json.dumps(ceilings) + "\n")
    return 0


def _compare(args: argparse.Namespace) -> int:
    lines, failed = rows.compare(rows.read_rows(args.old), rows.read_rows(args.new), args.fail_ratio)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if failed else 0


def _choose(text: str, known: tuple[str, ...], flag: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{flag} {','.join(unknown)}: it must be among {', '.join(known)}.")
    return names


def _default_shapes(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return ["llama8b", "llama8b:valid=0.3"]
    return ["small:T=512,V=16000", "small:T=512,V=16000,valid=0.3"]


def _append(path: str | None, row: dict[str, Any]) -> None:
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


def _megabytes(number: int | None) -> float | None:
    return None if number is None else number / 2**20

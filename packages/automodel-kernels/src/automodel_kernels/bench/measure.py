"""Error, memory and time of implementations, interleaved so that a busy moment hits all of them."""

import ctypes
import gc
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from automodel_kernels.backend import use_backend
from automodel_kernels.bench.cases import Case, Inputs
from automodel_kernels.bench.implementations import Run, implementation
from automodel_kernels.bench.shapes import Shape
from automodel_kernels.testing.bounds import SLACK, relative_error

CHECK_TOKENS = 512
CACHE_BYTES = 3 * 60 * 2**20
"""Input sets rotate until they exceed this on CUDA, three times the largest cache."""


@dataclass(frozen=True)
class Timing:
    """Quantiles in milliseconds of ``n`` runs, and how far the medians of the two halves lie apart."""

    p20: float
    p50: float
    p80: float
    n: int
    spread: float


def execute(run: Run, inputs: Inputs, leaves: tuple[str, ...], backward: bool) -> list[Tensor]:
    """One forward pass, and with ``backward`` the gradients of the leaves."""
    if not backward:
        with torch.no_grad():
            return [run(inputs)]
    local = {name: t.detach().requires_grad_(name in leaves) for name, t in inputs.items()}
    out = run(local)
    upstream = None if out.ndim == 0 else inputs["upstream"]
    return [out.detach(), *torch.autograd.grad(out, [local[name] for name in leaves], upstream)]


def errors(case: Case, shape: Shape, dtype: torch.dtype, device: torch.device, run: Run) -> tuple[dict, bool]:
    """Relative error of output and gradients against float64 on a shorter sequence, and whether all are in bounds.

    The bound is that of the kernel tests: twice torch's own error in this dtype, plus a constant.
    """
    from dataclasses import replace

    inputs = case.make(replace(shape, T=min(shape.T, CHECK_TOKENS)), dtype, device, 3)
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    plain = implementation("torch", case.op, device)
    with use_backend("torch"):
        truth = execute(plain, wide, case.leaves, True)
        twin = execute(plain, inputs, case.leaves, True)
    found = execute(run, inputs, case.leaves, True)
    result: dict[str, float] = {}
    fine = True
    for name, ours, theirs, exact in zip(("out", *case.leaves), found, twin, truth):
        result[name] = relative_error(ours, exact)
        fine = fine and result[name] <= 2 * relative_error(theirs, exact) + SLACK[dtype]
    return result, fine


def peak_bytes(run: Run, inputs: Inputs, leaves: tuple[str, ...], backward: bool) -> int | None:
    """Memory of one run beyond its inputs; None where the platform does not tell."""
    device = next(iter(inputs.values())).device
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        execute(run, inputs, leaves, backward)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _reset_peak_rss():
        return None
    before = _status("VmRSS")
    execute(run, inputs, leaves, backward)
    return _status("VmHWM") - before


def interleaved(
    runs: dict[str, Run], sets: list[Inputs], leaves: tuple[str, ...], backward: bool, repeats: int
) -> dict[str, Timing]:
    """Time every implementation ``repeats`` times in turns (ABAB), each time on the next input set."""
    device = next(iter(sets[0].values())).device
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            times[name].append(_milliseconds(run, sets[turn % len(sets)], leaves, backward, device))
    return {name: _summary(values) for name, values in times.items()}


def input_sets(case: Case, shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Inputs]:
    """Input sets to rotate through: two on CPU, as many as overflow the caches on CUDA."""
    first = case.make(shape, dtype, device, 0)
    size = sum(t.numel() * t.element_size() for t in first.values())
    number = 2 if device.type != "cuda" else max(2, min(16, -(-CACHE_BYTES // size)))
    return [first, *(case.make(shape, dtype, device, seed) for seed in range(1, number))]


def _milliseconds(run: Run, inputs: Inputs, leaves: tuple[str, ...], backward: bool, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        execute(run, inputs, leaves, backward)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    execute(run, inputs, leaves, backward)
    return (time.perf_counter() - begin) * 1e3


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    pick = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]  # noqa: E731
    half = len(values) // 2
    medians = [statistics.median(part) for part in (values[:half], values[half:]) if part]
    middle = statistics.median(values)
    return Timing(pick(0.2), middle, pick(0.8), len(values), (max(medians) - min(medians)) / middle)


def _reset_peak_rss() -> bool:
    """Give freed pages back and start the high-water mark anew; False where /proc does not allow it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024

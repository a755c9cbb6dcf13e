"""Plant one fault at a time in the source of the Triton kernels, and show which interpreter test catches it.

The package is copied to a temporary directory, one line of the copy is changed, and the tests under ``tests/interp``
run against it. A fault that no test catches ends the program with 1. Writes a Markdown table.
``python packages/automodel-kernels/tools/mutation_table.py [--only glu] [--output FILE]``
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
KERNELS = Path("src/automodel_kernels/triton_ops")


@dataclass(frozen=True)
class Fault:
    """One changed piece of one line."""

    file: str
    old: str
    new: str
    meaning: str
    tests: str
    """The test file that has to catch it."""


LOSS, LAYERS, LORA, OPS = "test_cross_entropy.py", "test_layers.py", "test_lora.py", "test_operators.py"
FAULTS = (
    Fault("cross_entropy.py", "total * tl.exp(peak - shift) +", "total +", "sum not rescaled to the new peak", LOSS),
    Fault("cross_entropy.py", "cols == label, x, 0.0", "cols == label + 1, x, 0.0", "label off by one", LOSS),
    Fault("cross_entropy.py", "            peak = new_peak\n", "", "running peak never moves", LOSS),
    # Reading ignored rows would only cost time, since their losses are masked afterwards; skipping others is wrong.
    Fault("cross_entropy.py", "if label != ignore_index:", "if label == ignore_index:", "the wrong rows skipped", LOSS),
    Fault("cross_entropy.py", "row = tl.program_id(0).to(tl.int64)", "row = tl.program_id(0)", "32-bit row", LOSS),
    Fault("cross_entropy.py", "g - (1.0 - smoothing), g)", "g - 1.0, g)", "smoothing left out at the label", LOSS),
    Fault("cross_entropy.py", " - smoothing / num_classes\n", "\n", "smoothing left out elsewhere", LOSS),
    Fault("cross_entropy.py", "1.0 + 2.0 * z_loss", "1.0 + z_loss", "half the z-loss gradient", LOSS),
    Fault("cross_entropy.py", "1.0 - squashed * squashed", "1.0 - squashed", "slope of the softcap", LOSS),
    Fault("cross_entropy.py", " * slope * upstream", " * slope", "upstream gradient dropped", LOSS),
    Fault("cross_entropy.py", "if upstream == 0.0:", "if upstream == 7.5:", "ignored rows read their logits", LOSS),
    Fault("glu.py", "slope = s * (1.0 + g * (1.0 - s))", "slope = s", "slope of SiLU", LAYERS),
    Fault("glu.py", "0.044715 * g * g * g", "0.044715 * g * g", "cube in GELU by tanh", LAYERS),
    Fault("glu.py", "cdf + g * 0.3989422804014327", "cdf + g * 0.4", "density in GELU by erf", LAYERS),
    Fault("glu.py", "round_to(d * u * slope, kind)", "round_to(d * slope, kind)", "gate gradient without up", LAYERS),
    Fault("glu.py", "round_to(d * value, kind)", "round_to(d * g, kind)", "up gradient without activation", LAYERS),
    Fault("glu.py", "cols = tl.program_id(1) * BLOCK +", "cols = 0 * BLOCK +", "only the first block", LAYERS),
    Fault("glu.py", "inside = cols < width", "inside = cols < width + 1", "writes past the row", LAYERS),
    Fault("rms_norm.py", "tl.sum(t * t, 1) / H + eps", "tl.sum(t * t, 1) / BLOCK + eps", "mean over the block", LAYERS),
    Fault("rms_norm.py", "        w += 1.0\n", "        w += 0.0\n", "gemma's one left out", LAYERS),
    Fault("rms_norm.py", "rows[:, None] * residual_stride", "rows[:, None] * 0", "first residual row for all", LAYERS),
    Fault("rope.py", "first * cos[None, :] - second", "first * cos[None, :] + second", "sign of the rotation", LAYERS),
    Fault("rope.py", "b = program // T", "b = program % T", "batch row of another token", LAYERS),
    Fault("rope.py", "if REST > 0:", "if REST > 9999:", "unrotated channels not copied", LAYERS),
    Fault("rope.py", "b * angle_batch + t", "t", "positions of the first row for all", LAYERS),
    Fault("lora.py", "base + scaling * product", "scaling * product", "overwrites instead of adding", LORA),
    Fault("lora.py", "base + scaling * product", "base + product", "scaling left out", LORA),
    Fault("lora.py", "for start in range(0, K, BLOCK_K):", "for start in range(0, K - BLOCK_K, BLOCK_K):",
          "last block of the sum", LORA),
    Fault("lora.py", "(ks < K)[:, None] & (ranks < rank)[None, :]", "(ks < K + 9)[:, None] & (ranks < rank)[None, :]",
          "A read past its row", LORA),
    Fault("lora.py", "rows = tl.program_id(0).to(tl.int64) * BLOCK_M", "rows = tl.program_id(0).to(tl.int64) * 0",
          "only the first rows", LORA),
    Fault("rms_norm.py", " - n * (tl.sum(n * wg, 1) / H)[:, None]", "", "gradient through the norm", LAYERS),
    Fault("rms_norm.py", "dw += tl.sum(n * g, 0)", "dw = tl.sum(n * g, 0)", "weight gradient of the last rows", LAYERS),
    Fault("rms_norm.py", "dt += tl.load(d_total", "dt += 0 * tl.load(d_total", "residual gradient", LAYERS),
    Fault("common.py", "bits + 0x7FFF + ((bits >> 16) & 1)", "bits", "bfloat16 truncated, not rounded", OPS),
    Fault("common.py", "2.0 * tl.sigmoid(2.0 * value) - 1.0", "2.0 * tl.sigmoid(value) - 1.0", "tanh of half", LOSS),
)  # fmt: skip


def plant(fault: Fault, directory: Path) -> int:
    """Change the copy; returns the line number. Raises: ValueError: the piece is not in the file."""
    path = directory / KERNELS / fault.file
    text = path.read_text()
    if fault.old not in text:
        raise ValueError(f"{fault.file} has no {fault.old!r}: the kernel changed. Correct the fault in this table.")
    path.write_text(text.replace(fault.old, fault.new))
    return text[: text.index(fault.old)].count("\n") + 1


def catch(directory: Path, tests: str) -> str | None:
    """The first test that fails on the copy, or None."""
    paths = [str(directory / "src"), str(directory / "tests")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    environment["TRITON_CACHE_DIR"] = str(directory / "cache")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--import-mode=importlib", "-p", "no:cacheprovider",
               "-c", os.devnull, "--rootdir", str(directory), str(directory / "tests" / "interp" / tests)]  # fmt: skip
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    found = re.search(r"^(?:FAILED|ERROR) \S*?::(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found.group(1)


def try_fault(fault: Fault | None, tests: str) -> tuple[int, str | None]:
    """Line of the planted fault and the test that catches it; None plants nothing."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        directory = Path(name)
        for part in ("src", "tests"):
            shutil.copytree(PACKAGE / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        line = plant(fault, directory) if fault else 0
        return line, catch(directory, tests)


def main() -> int:
    """Parse, plant, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if args.only in fault.file]
    for tests in sorted({fault.tests for fault in faults}):
        failing = try_fault(None, tests)[1]
        if failing:
            sys.exit(f"{tests} fails without any fault, at {failing}: mend that first.")
    lines, escaped = ["| kernel | planted fault | caught by |", "|---|---|---|"], 0
    for fault in faults:
        line, test = try_fault(fault, fault.tests)
        escaped += test is None
        lines.append(f"| `{fault.file}`:{line} | {fault.meaning} | {f'`{test}`' if test else '**nothing**'} |")
        print(lines[-1], flush=True)  # noqa: T201
    lines.append(f"\n{len(faults)} faults, {len(faults) - escaped} caught.")
    print(lines[-1])  # noqa: T201
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")
    return 1 if escaped else 0


if __name__ == "__main__":
    raise SystemExit(main())

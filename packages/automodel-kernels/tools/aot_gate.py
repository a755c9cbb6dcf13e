"""Compile every shipped kernel configuration ahead of time, without a GPU, and hold the machine code to account.

    python packages/automodel-kernels/tools/aot_gate.py --arch 90            # CI
    python packages/automodel-kernels/tools/aot_gate.py --arch 80,90,100     # before a release

Gates: no spills to local memory, no stack, shared memory within the chip's, 128-bit global loads where the layout
allows them, and tensor-core instructions in every matrix product. Green means that the kernels compile to sane code;
it says nothing about speed, races, or bfloat16 numerics on a device.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORES = {80: r"\bHMMA\b", 90: r"\bHGMMA\b", 100: r"\bUTC\w*MMA\b"}


@dataclass
class Row:
    """What one configuration compiled to."""

    name: str
    arch: int
    seconds: float
    registers: int
    stack: int
    spills: int
    shared: int
    wide_loads: int
    tensor_core_instructions: int
    problems: list[str]


def main() -> int:
    """Compile, print one JSON row a configuration, and return 1 if a gate failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="90", help="compute capabilities, such as 80,90,100")
    parser.add_argument("--only", default="", help="compile only configurations whose name holds this text")
    args = parser.parse_args()
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what Triton 3.9 does by default, and 3.10 will not
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("TRITON_INTERPRET is set: the interpreter does not compile. Unset it and start again.")
    from automodel_kernels.triton_ops.shipped import shipped

    configurations = [c for c in shipped() if args.only in c.name]
    rows = [check(c, int(arch)) for arch in args.arch.split(",") for c in configurations]
    for row in rows:
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
    failed = [row for row in rows if row.problems]
    sys.stderr.write(f"{len(rows) - len(failed)} of {len(rows)} configurations pass\n")
    return 1 if failed or not rows else 0


def check(configuration, arch: int) -> Row:
    """Compile one configuration for one architecture and read the machine code."""
    start = time.perf_counter()
    compiled = _compile(configuration, arch)
    seconds = time.perf_counter() - start
    usage, sass = _disassemble(compiled.asm["cubin"])
    row = Row(
        name=configuration.name,
        arch=arch,
        seconds=round(seconds, 2),
        registers=_number(r"REG:(\d+)", usage),
        stack=_number(r"STACK:(\d+)", usage),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        wide_loads=len(re.findall(r"\bLDG\S*\.128\b|\bLDGSTS\S*\.128\b|\bUBLKCP\b", sass)),
        tensor_core_instructions=len(re.findall(TENSOR_CORES[arch], sass)),
        problems=[],
    )
    row.problems = _problems(row, configuration)
    return row


def _compile(configuration, arch: int):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(configuration.kernel.arg_names)
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if _is_aligned(configuration.signature.get(name, ""), name in configuration.unaligned)
    }
    signature = {name: configuration.signature.get(name, "constexpr") for name in names}
    source = ASTSource(fn=configuration.kernel, signature=signature, constexprs=configuration.constants, attrs=aligned)
    options = {"num_warps": configuration.num_warps}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _is_aligned(kind: str, unaligned: bool) -> bool:
    return (kind.startswith("*") or kind in ("i32", "i64")) and not unaligned


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        flags = ("--dump-resource-usage", "--dump-sass")
        usage, sass = (_run([tool, flag, file.name]) for flag in flags)
    return usage, sass


def _run(command: list) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _problems(row: Row, configuration) -> list[str]:
    problems = []
    if row.spills or row.stack:
        problems.append(f"{row.spills} local loads or stores, a stack of {row.stack} bytes")
    if row.shared > SHARED_LIMIT[row.arch]:
        problems.append(f"{row.shared} bytes of shared memory of {SHARED_LIMIT[row.arch]}")
    if configuration.wide_loads and not row.wide_loads:
        problems.append("no 128-bit load")
    if configuration.tensor_cores and not row.tensor_core_instructions:
        problems.append("no tensor-core instruction")
    return problems


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"cuobjdump printed no {pattern}"
    return int(found.group(1))


if __name__ == "__main__":
    sys.exit(main())

"""How long the command line takes to answer, beside `python -c pass` and `import torch` on the same machine.

Prints one JSON row per command: the median of several runs in seconds, and ratios within this run. Run:
    python benchmarks/cli_start.py [--runs 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "automodel_recipes"]


def commands() -> dict[str, list[str]]:
    """What is timed, by name."""
    from automodel_recipes.shipped import shipped_recipes

    recipe = str(shipped_recipes()["demo_lora"].path)
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "--help": [*PROGRAM, "--help"],
        "train --help": [*PROGRAM, "train", "--help"],
        "validate demo_lora": [*PROGRAM, "validate", recipe],
        "config show --provenance": [*PROGRAM, "config", "show", recipe, "--provenance"],
        "config schema": [*PROGRAM, "config", "schema"],
        "import torch": [sys.executable, "-c", "import torch"],
    }


def median_seconds(command: list[str], runs: int) -> float:
    """The median wall time of a command, after one run to warm the file cache."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=Path.home())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    seconds = {name: median_seconds(command, runs) for name, command in commands().items()}
    for name, value in seconds.items():
        row = {"command": name, "seconds": round(value, 3)}
        row["over_bare_python"] = round(value / seconds["python -c pass"], 1)
        row["share_of_import_torch"] = round(value / seconds["import torch"], 3)
        print(json.dumps(row))


if __name__ == "__main__":
    main()

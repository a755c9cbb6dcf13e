"""What importing costs: ``automodel_kernels`` beside torch alone, each in fresh processes, interleaved.

python benchmarks/kernels_import.py --repeats 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "python": "pass",
    "automodel_kernels": "import automodel_kernels",
    "torch": "import torch",
    "ops and patching": "import automodel_kernels.ops, automodel_kernels.patch",
}


def main() -> None:
    """Print one JSON row of seconds and differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats):
        for name, statement in STATEMENTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    row = {f"{name} (s)": value for name, value in medians.items()}
    row["automodel_kernels over python (s)"] = medians["automodel_kernels"] - medians["python"]
    row["ops and patching over torch (s)"] = medians["ops and patching"] - medians["torch"]
    print(json.dumps(row))


if __name__ == "__main__":
    main()

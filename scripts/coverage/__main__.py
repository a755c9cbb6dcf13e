"""Which model families of transformers work: build each at a tiny size, train it, shard it, save it, read it back.

    python scripts/coverage            # all families; writes docs/coverage.json and docs/coverage.md
    python scripts/coverage llama phi3 # some, printed and not written; with --write their rows are replaced

docs/coverage.md says what the checks are.
"""

import argparse
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import checks
import ranks
import torch
from families import CAUSAL, IMAGE_TEXT
from table import CHECKS, failed, failures, markdown

ROOT = Path(__file__).resolve().parents[2]


def check_family(kind, is_vlm):
    """One row: a check's value is ``ok``, a remark, or why it failed."""
    row = {"family": kind, "task": "image-text" if is_vlm else "causal", "seconds": 0.0}
    start = time.perf_counter()
    for name in CHECKS:
        check = getattr(checks, f"check_{name}", None) or getattr(ranks, f"check_{name}")
        try:
            row[name] = check(kind, is_vlm)
        except Exception as error:  # noqa: BLE001 - whatever a family does wrong is what the table is for
            row[name] = failed(error)
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def write(rows):
    """Both files; rows of families that were not tried now stay."""
    file = ROOT / "docs/coverage.json"
    fresh = {row["family"]: row for row in rows}
    if set(fresh) < {*CAUSAL, *IMAGE_TEXT}:
        rows = [fresh.get(row["family"], row) for row in json.loads(file.read_text())]
    file.write_text(json.dumps(rows, indent=1) + "\n")
    (ROOT / "docs/coverage.md").write_text(markdown(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--write", action="store_true", help="replace the rows of these families")
    options = parser.parse_args()
    wanted = options.families
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # a family that does not get small must not take all
    rows = []
    for kind, is_vlm in [*((kind, False) for kind in CAUSAL), *((kind, True) for kind in IMAGE_TEXT)]:
        if wanted and kind not in wanted:
            continue
        rows.append(check_family(kind, is_vlm))
        print(json.dumps(rows[-1]), flush=True)
    if options.write or not wanted:
        write(rows)
    return int(bool(wanted) and any(failures(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Fault campaigns on automodel-ckpt: prints one JSON row per campaign; exits 1 if anything was lost.

    python scripts/faults.py [--kills 2000] [--states 5000] [--mutations 10000]
                             [--jobs 4] [--minutes M] [--directory /dev/shm]

Kills: 4 gloo ranks with FSDP2 (and as many trials in one process), SIGKILL of one or all at a random moment.
States: directories that a power failure may leave, from every moment of four saves with retention.
Mutations: truncated, extended, flipped, swapped, deleted, zeroed and duplicated files, at verify="hash".
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "packages/automodel-ckpt/tests"


def load_tests(name):
    """The test modules hold the campaigns' parts; they are not a package."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kills(folder, world_size, options):
    from automodel_ckpt.faults.campaign import kill_campaigns

    tally = kill_campaigns(
        folder / f"kill-{world_size}",
        trials=options.kills,
        jobs=options.jobs,
        world_size=world_size,
        seed=1000 * world_size,
        limit_s=None if options.minutes is None else 60 * options.minutes,
    )
    return {
        "campaign": f"SIGKILL, {world_size} rank(s)",
        "trials": tally.trials,
        "saves_acknowledged": tally.acknowledged,
        "killed_inside_save_or_gc": tally.killed_in_save,
        "hangs": tally.hangs,
        "lost": len(tally.lost),
        "seconds": round(tally.seconds, 1),
        "kills_per_minute": round(60 * tally.trials / tally.seconds, 1),
    }


def power_loss(folder, count):
    build, module = load_tests("conftest")._build, load_tests("faults/test_system_calls")
    log = module._recorded_run(folder / "power", build) if (folder / "power").mkdir() is None else None
    (folder / "states").mkdir()
    lost = module._lost(log, folder / "states", build, count, seed=1)
    return {"campaign": "power failure", "trials": count, "operations_recorded": len(log), "lost": lost}


def mutations(folder, count):
    from automodel_ckpt import save

    made, module = load_tests("conftest")._build(1), load_tests("faults/test_corruption")
    state = {"model": made.model, "optim": made.optim, "train": made.train, "rank": {"seed": 5}}
    pristine = save(folder / "pristine", state, step=1)
    (folder / "mutated").mkdir()
    missed = module._undetected(pristine, folder / "mutated", count, seed=1)
    return {"campaign": "damaged files", "trials": count, "lost": len(missed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--states", type=int, default=5000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=4, help="kill campaigns beside each other")
    parser.add_argument("--minutes", type=float, help="each of the two kill campaigns ends after so long")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # survivors would tell of the dead store at length
    folder = Path(tempfile.mkdtemp(prefix="ckpt-faults-", dir=options.directory))
    lost = 0
    campaigns = [
        (options.mutations, lambda: mutations(folder, options.mutations)),
        (options.states, lambda: power_loss(folder, options.states)),
        (options.kills, lambda: kills(folder, 1, options)),
        (options.kills, lambda: kills(folder, 4, options)),
    ]
    for count, campaign in campaigns:
        if count:
            row = campaign()
            print(json.dumps(row), flush=True)
            lost += row["lost"] + row.get("hangs", 0)
    shutil.rmtree(folder)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())

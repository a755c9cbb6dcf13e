"""What a change has to be tested with: the lanes of the packages that it touches, and of those that depend on them.

    python scripts/ci_matrix.py origin/main      # lanes for the difference to a commit, one command a line
    python scripts/ci_matrix.py --all [--json]   # every lane; JSON for the `matrix:` of a workflow

A leaf that changes is tested alone and through recipes, which composes it; so are the tests between packages. A change
outside the packages, such as the lint settings, is a change of everything. The unit lanes take the newest releases of
every dependency but torch, the floor lanes the oldest, the wheel lanes what is built, the skew lane wheels of different
ages. Standard library only.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LEAVES = ("core", "parallel", "kernels", "data", "ckpt")
PACKAGES = (*LEAVES, "recipes")
PYTHONS = ("3.11", "3.12", "3.13")
WORDS_ALONE = (".md", ".txt", ".cff")
"""Files of words: they are linted and their code blocks run, and no package is rebuilt for them."""


def affected_packages(paths: list[str]) -> set[str]:
    """The packages whose behaviour a change of these files may alter, dependents included."""
    packages: set[str] = set()
    for path in map(PurePosixPath, paths):
        if path.parts[0] == "packages" and len(path.parts) > 2:
            packages.add(path.parts[1].removeprefix("automodel-"))
        elif path.suffix not in WORDS_ALONE and path.parts[0] not in ("docs", "docker", "benchmarks", "examples"):
            return set(PACKAGES)
        elif path.parts[0] == "examples" and path.suffix not in WORDS_ALONE:
            packages.add("recipes")
    return packages | ({"recipes"} if packages else set())


def lanes(packages: set[str]) -> list[dict[str, str]]:
    """Lanes in the order in which they are worth running: ``name``, ``command``, ``python``."""
    rows = [row("lint", "hatch run lint"), row("types", "hatch run types"), row("imports", "hatch run imports")]
    rows.append(row("docs", "hatch run docs"))
    for package in PACKAGES:
        if package not in packages:
            continue
        tests = f'hatch run python -m pytest -n 2 -m "not more and not long and not gpu" packages/automodel-{package}'
        rows += [row(f"unit-{package}", tests, python) for python in PYTHONS]
        rows.append(row(f"wheel-{package}", f"hatch run wheels {package}"))
        rows.append(row(f"floor-{package}", f"hatch run python scripts/check_floors.py {package}"))
    if packages:
        between = 'hatch run python -m pytest -n 2 -m "not more and not long and not gpu" tests'
        rows += [row(name, f"{between}/{name}") for name in ("contracts", "invariants", "functional")]
        rows += [row("more", "hatch run more"), row("skew", "hatch run skew")]
    if "kernels" in packages:
        rows += [row("kernels-interp", "hatch run kernels-interp"), row("kernels-aot", "hatch run kernels-aot")]
    if packages & {"core", "parallel", "kernels"}:
        rows.append(row("extras", "hatch run extras:tests"))
    return rows


def row(name: str, command: str, python: str = PYTHONS[0]) -> dict[str, str]:
    """One lane."""
    return {"name": name, "command": command, "python": python}


def changed_files(base: str) -> list[str]:
    """Paths that differ between the merge base with ``base`` and the working tree."""
    command = ["git", "diff", "--name-only", "--merge-base", base]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout.splitlines()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="commit or branch to compare with")
    parser.add_argument("--all", action="store_true", help="every lane")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(argv)
    if options.all == (options.base is not None):
        parser.error("name a commit to compare with, or give --all")
    packages = set(PACKAGES) if options.all else affected_packages(changed_files(options.base))
    rows = lanes(packages)
    if options.json:
        print(json.dumps({"include": rows}))
    else:
        for item in rows:
            print(f"{item['name']:<16} py{item['python']:<5} {item['command']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

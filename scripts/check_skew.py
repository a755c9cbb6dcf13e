"""Packages of different ages beside each other: what a user has who upgrades one of six wheels.

    python scripts/check_skew.py             # against each package's newest release tag
    python scripts/check_skew.py --ref HEAD~3 [core ...]

Each leaf is built as it was at the older commit and installed beside the tree's other five wheels; then
automodel-recipes as it was beside the tree's leaves. In each mixture pip must find the versions compatible, and the
demo must validate and train a few steps. A package without a release tag has nothing to differ from, and is named.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from check_wheels import LEAVES, ROOT, SMALL_RUN, build_wheels, clean_env, clean_python, install, run

PACKAGES = (*LEAVES, "recipes")


def newest_tag(name: str) -> str | None:
    """The newest release tag of a package."""
    command = ["git", "tag", "--list", f"automodel-{name}-v*", "--sort=-version:refname"]
    tags = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout.split()
    return tags[0] if tags else None


def older_wheel(name: str, ref: str, work: Path) -> Path:
    """The wheel of a package as it was at a commit or tag."""
    folder = f"packages/automodel-{name}"
    archive = subprocess.run(["git", "archive", ref, folder], cwd=ROOT, check=True, capture_output=True).stdout
    source, dist = work / f"source-{name}", work / f"older-{name}"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)], cwd=source / folder)
    (wheel,) = dist.glob("*.whl")
    return wheel


def put(python: str, wheel: Path, env: dict[str, str]) -> None:
    """Install one wheel over whatever version of the package is there."""
    run([python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", str(wheel)], env=env)


def use(python: str, folder: Path, env: dict[str, str]) -> None:
    """The versions fit one another, and the demo validates and trains."""
    run([python, "-m", "pip", "check"], env=env)
    cli = str(Path(python).with_name("automodel-recipes"))
    folder.mkdir()
    run([cli, "recipes", "cp", "demo_lora"], cwd=folder, env=env)
    run([cli, "validate", "demo_lora.yaml"], cwd=folder, env=env)
    run([cli, "train", "demo_lora.yaml", "--max-steps", "2", *SMALL_RUN], cwd=folder, env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="packages; all by default")
    parser.add_argument("--ref", help="the older commit or tag; each package's newest release tag by default")
    options = parser.parse_args()
    names = options.names or list(PACKAGES)
    if unknown := set(names) - set(PACKAGES):
        parser.error(f"no package {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
    refs = {name: options.ref or newest_tag(name) for name in names}
    for name in [name for name, ref in refs.items() if ref is None]:
        print(f"automodel-{name}: no release yet, nothing to differ from")
        del refs[name]
    if not refs:
        return
    with tempfile.TemporaryDirectory(prefix="automodel-skew-") as folder:
        work = Path(folder)
        wheels = build_wheels(work / "dist")
        python, env = clean_python(work / "venv"), clean_env(work / "dist")
        install(python, [*map(str, wheels.values())], env)
        for name, ref in refs.items():
            assert ref is not None
            put(python, older_wheel(name, ref, work), env)
            use(python, work / f"use-{name}", env)
            put(python, wheels[name], env)
            print(f"automodel-{name} of {ref} works with the other five of the tree", flush=True)


if __name__ == "__main__":
    main()

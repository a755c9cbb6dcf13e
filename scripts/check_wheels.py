"""Prove that the wheels are good alone: build all six, install each in a clean environment, use it there.

Each of the five leaves is installed without its siblings and every submodule is imported. automodel-recipes is
installed with its five from the build directory, in an empty working directory, and trains the demo for a few steps
from the shipped configuration. Usage: ``python scripts/check_wheels.py [leaf ...] [--keep]``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAVES = ("core", "parallel", "kernels", "data", "ckpt")
CONSTRAINT = "torch==2.13.0"

# Imports every submodule; modules that need an absent optional dependency must say so by ImportError with a pip line.
IMPORT_ALL = """
import importlib, pkgutil, sys
name = sys.argv[1]
package = importlib.import_module(name)
modules = [m.name for m in pkgutil.walk_packages(package.__path__, name + ".") if not m.name.endswith("__main__")]
optional = []
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        optional.append(module)
siblings = sorted(m for m in sys.modules if m.startswith("automodel_") and m.split(".")[0] != name)
assert not siblings, f"{name} imported {siblings}"
print(f"{name}: {len(modules)} modules imported, {len(optional)} ask for an extra")
"""


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command; on failure print its output and stop."""
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\nexit code {done.returncode}")
    return done.stdout


def build_wheels(dist: Path) -> dict[str, Path]:
    """Build the six wheels into ``dist``; returns them by short name."""
    wheels = {}
    for name in (*LEAVES, "recipes"):
        package = ROOT / "packages" / f"automodel-{name}"
        run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)], cwd=package)
        (wheels[name],) = dist.glob(f"automodel_{name}-*.whl")
        print(f"built {wheels[name].name} ({wheels[name].stat().st_size / 2**20:.2f} MiB)", flush=True)
    return wheels


def clean_python(folder: Path) -> str:
    """A new virtual environment; returns its interpreter."""
    run([sys.executable, "-m", "venv", str(folder)])
    return str(folder / "bin" / "python")


def clean_env(dist: Path) -> dict[str, str]:
    """The environment without this process's Python settings; pip also looks into ``dist``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HATCH"))}
    env["PIP_FIND_LINKS"] = f"{dist} {env.get('PIP_FIND_LINKS', '')}".strip()
    env["HF_HUB_OFFLINE"] = "1"
    return env


def check_leaf(name: str, wheel: Path, work: Path) -> None:
    """Install one leaf alone and import all of it."""
    python, env = clean_python(work / f"venv-{name}"), clean_env(wheel.parent)
    run([python, "-m", "pip", "install", "-q", CONSTRAINT, str(wheel)], env=env)
    installed = run([python, "-m", "pip", "list", "--format=freeze"], env=env)
    others = [line for line in installed.splitlines() if line.startswith("automodel")]
    if len(others) != 1:
        sys.exit(f"automodel-{name} alone installed {others}")
    print(run([python, "-c", IMPORT_ALL, f"automodel_{name}"], cwd=work, env=env).strip(), flush=True)


def check_recipes(wheels: dict[str, Path], work: Path) -> None:
    """Install recipes with its five from the build, then copy and train the demo in an empty directory."""
    python, env = clean_python(work / "venv-recipes"), clean_env(wheels["recipes"].parent)
    run([python, "-m", "pip", "install", "-q", CONSTRAINT, *map(str, wheels.values())], env=env)
    empty = work / "empty"
    empty.mkdir()
    cli = str(Path(python).with_name("automodel-recipes"))
    run([cli, "recipes", "cp", "demo_lora"], cwd=empty, env=env)
    screen = run([cli, "train", "demo_lora.yaml", "--max-steps", "3"], cwd=empty, env=env)
    adapters = list(empty.glob("**/adapter_model.safetensors"))
    if not adapters:
        sys.exit(f"no adapter was written:\n{screen}")
    print("recipes: demo trained 3 steps from the wheels alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="leaves to check, or 'recipes'; all by default")
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    options = parser.parse_args()
    names = options.names or [*LEAVES, "recipes"]
    work = Path(tempfile.mkdtemp(prefix="automodel-wheels-"))
    try:
        wheels = build_wheels(work / "dist")
        for name in names:
            if name == "recipes":
                check_recipes(wheels, work)
            else:
                check_leaf(name, wheels[name], work)
            shutil.rmtree(work / f"venv-{name}", ignore_errors=True)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

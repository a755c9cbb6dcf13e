"""Prove that the wheels are good alone: build all six, install each in a clean environment, use it there.

The wheels' contents are looked at first. Each of the five leaves is then installed without its siblings, every
submodule is imported, and a small program of ``scripts/wheel_uses`` uses it. automodel-recipes is installed with its
five from the build directory, in an empty working directory, and trains the demo for a few steps from the shipped
configuration. Usage: ``python scripts/check_wheels.py [leaf ...] [--keep]``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAVES = ("core", "parallel", "kernels", "data", "ckpt")
CONSTRAINT = "torch==2.13.0"
MAX_WHEEL_BYTES = 8 * 2**20
# The demo's own evaluation generates 256 answers twice; here the point is that everything is in the wheels.
SMALL_RUN = ["evaluation.num_rows=4", "evaluation.at_start=false"]

# Imports every submodule. One that needs an optional dependency may fail for want of it: either with a pip line, or
# because a package of one of the wheel's own extras is not there.
IMPORT_ALL = """
import importlib, importlib.metadata, pkgutil, re, sys
name = sys.argv[1]
package = importlib.import_module(name)
wanted = [line for line in importlib.metadata.requires(name) if "extra ==" in line]
extras = {re.split(r"[^\\w-]", line)[0].replace("-", "_") for line in wanted}
extras = {"PIL" if extra == "pillow" else extra for extra in extras}
modules = [m.name for m in pkgutil.walk_packages(package.__path__, name + ".") if not m.name.endswith("__main__")]
optional = []
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if "pip install" not in str(error) and (error.name or "").split(".")[0] not in extras:
            raise
        optional.append(module)
siblings = sorted(m for m in sys.modules if m.startswith("automodel_") and m.split(".")[0] != name)
assert not siblings, f"{name} imported {siblings}"
print(f"{name}: {len(modules)} modules, of which {len(optional)} need an extra")
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


def check_contents(wheel: Path) -> None:
    """A wheel holds its licence and its type marker, no tests, and little else than source."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        metadata = next(archive.read(name).decode() for name in sizes if name.endswith(".dist-info/METADATA"))
    package = wheel.name.split("-")[0]
    problems = []
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in sizes):
        problems.append("no LICENSE")
    if f"{package}/py.typed" not in sizes:
        problems.append("no py.typed")
    outside = [n for n in sizes if not n.startswith((f"{package}/", f"{package}-")) or "/tests/" in n or "/test_" in n]
    problems += [f"{name} does not belong in a wheel" for name in outside]
    if (total := sum(sizes.values())) > MAX_WHEEL_BYTES:
        problems.append(f"{total / 2**20:.1f} MiB unpacked; at most {MAX_WHEEL_BYTES / 2**20:.0f}")
    if "Description-Content-Type: text/markdown" not in metadata:
        problems.append("no README in its metadata")
    if problems:
        sys.exit(f"{wheel.name}: {'; '.join(problems)}")


def clean_python(folder: Path, shared: Path | None = None) -> str:
    """A new virtual environment; returns its interpreter.

    ``shared`` is site-packages of an environment that holds torch and its dependencies and nothing else: every wheel
    declares torch, and unpacking it seven times is most of the time of this lane.
    """
    run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    if shared is not None:
        site_packages(python).joinpath("torch.pth").write_text(f"{shared}\n")
    return python


def site_packages(python: str) -> Path:
    """Where an interpreter installs packages."""
    return Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]).strip())


def clean_env(dist: Path) -> dict[str, str]:
    """The environment without this process's Python settings; pip also looks into ``dist``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HATCH"))}
    env["PIP_FIND_LINKS"] = f"{dist} {env.get('PIP_FIND_LINKS', '')}".strip()
    return env | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def install(python: str, requirements: list[str], env: dict[str, str]) -> None:
    """Install with the pinned torch, without compiling what is never imported."""
    run([python, "-m", "pip", "install", "-q", "--no-compile", CONSTRAINT, *requirements], env=env)


def check_leaf(name: str, wheel: Path, work: Path, torch_packages: Path) -> None:
    """Install one leaf alone, import all of it, and put it to a small use."""
    python, env = clean_python(work / f"venv-{name}", torch_packages), clean_env(wheel.parent)
    install(python, [str(wheel)], env)
    installed = run([python, "-m", "pip", "list", "--format=freeze"], env=env)
    others = [line for line in installed.splitlines() if line.startswith("automodel")]
    if len(others) != 1:
        sys.exit(f"automodel-{name} alone installed {others}")
    print(run([python, "-c", IMPORT_ALL, f"automodel_{name}"], cwd=work, env=env).strip(), flush=True)
    shown = run([python, str(ROOT / "scripts" / "wheel_uses" / f"use_{name}.py")], cwd=work, env=env)
    print(f"automodel_{name}: {shown.strip().splitlines()[-1]}", flush=True)


def check_recipes(wheels: dict[str, Path], work: Path, torch_packages: Path) -> None:
    """Install recipes with its five from the build, then copy and train the demo in an empty directory."""
    python, env = clean_python(work / "venv-recipes", torch_packages), clean_env(wheels["recipes"].parent)
    install(python, [*map(str, wheels.values())], env)
    run([python, "-m", "pip", "check"], env=env)
    empty = work / "empty"
    empty.mkdir()
    cli = str(Path(python).with_name("automodel-recipes"))
    run([cli, "recipes", "cp", "demo_lora"], cwd=empty, env=env)
    run([cli, "validate", "demo_lora.yaml"], cwd=empty, env=env)
    screen = run([cli, "train", "demo_lora.yaml", "--max-steps", "3", *SMALL_RUN], cwd=empty, env=env)
    adapters = list(empty.glob("**/adapter_model.safetensors"))
    if not adapters:
        sys.exit(f"no adapter was written:\n{screen}")
    run([cli, "generate", "runs/demo_lora", "--prompt", "Two red mugs, please."], cwd=empty, env=env)
    print("automodel_recipes: the demo trained 3 steps and answered, from the wheels alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="leaves to check, or 'recipes'; all by default")
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    options = parser.parse_args()
    names = options.names or [*LEAVES, "recipes"]
    if unknown := set(names) - {*LEAVES, "recipes"}:
        parser.error(f"no package {', '.join(sorted(unknown))}; there are {', '.join(LEAVES)} and recipes")
    work = Path(tempfile.mkdtemp(prefix="automodel-wheels-"))
    try:
        wheels = build_wheels(work / "dist")
        for wheel in wheels.values():
            check_contents(wheel)
        python = clean_python(work / "venv-torch")
        install(python, [], clean_env(work / "dist"))
        torch_packages = site_packages(python)
        for name in names:
            if name == "recipes":
                check_recipes(wheels, work, torch_packages)
            else:
                check_leaf(name, wheels[name], work, torch_packages)
            shutil.rmtree(work / f"venv-{name}", ignore_errors=True)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

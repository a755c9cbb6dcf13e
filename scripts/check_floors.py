"""Install a package with the oldest releases that it declares, all but torch, and use it.

    python scripts/check_floors.py [core ...]

The wheel is installed in a clean environment with ``name==floor`` for each of its declared ranges; then every
submodule is imported and the program of ``scripts/wheel_uses`` runs. torch stays as the workspace pins it.
"""

import argparse
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from check_wheels import IMPORT_ALL, LEAVES, ROOT, build_wheels, clean_env, clean_python, install, run, site_packages


def floors(name: str) -> list[str]:
    """``requirement==floor`` for every dependency of a package but torch and our own wheels."""
    project = tomllib.loads((ROOT / "packages" / f"automodel-{name}" / "pyproject.toml").read_text())["project"]
    pins = []
    for dependency in project["dependencies"]:
        match = re.match(r"([A-Za-z0-9_-]+)(?:\[[^]]*\])?>=([0-9.]+)", dependency)
        if match is None:
            sys.exit(f"automodel-{name}: {dependency!r} declares no floor; write name>=version")
        if match[1] != "torch" and not match[1].startswith("automodel"):
            pins.append(f"{match[1]}=={match[2]}")
    return pins


def check(name: str, wheels: dict[str, Path], work: Path, torch_packages: Path) -> None:
    """Install one package at its floors and use it."""
    python, env = clean_python(work / f"venv-{name}", torch_packages), clean_env(wheels[name].parent)
    pins = floors(name)
    own = [str(wheel) for other, wheel in wheels.items() if other == name or name == "recipes"]
    install(python, [*own, *pins], env)
    run(
        [python, "-c", IMPORT_ALL, f"automodel_{name}"] if name != "recipes" else [python, "-m", "pip", "check"],
        env=env,
    )
    if name in LEAVES:
        run([python, str(ROOT / "scripts" / "wheel_uses" / f"use_{name}.py")], cwd=work, env=env)
    print(f"automodel-{name}: works with {', '.join(pins) or 'torch alone'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="packages; all by default")
    names = parser.parse_args().names or [*LEAVES, "recipes"]
    work = Path(tempfile.mkdtemp(prefix="automodel-floors-"))
    try:
        wheels = build_wheels(work / "dist")
        python = clean_python(work / "venv-torch")
        install(python, [], clean_env(work / "dist"))
        for name in names:
            check(name, wheels, work, site_packages(python))
            shutil.rmtree(work / f"venv-{name}", ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

"""The import contract is not decoration: a leaf that imports a sibling fails the `imports` lane."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.more


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources and of the contract."""
    copy = tmp_path_factory.mktemp("workspace")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ROOT.glob("packages/automodel-*"):
        ignored = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(package / "src", copy / "packages" / package.name / "src", ignore=ignored)
    return copy


def lint_imports(tree):
    """Run import-linter on the copied sources, not on the installed ones."""
    sources = os.pathsep.join(str(path) for path in sorted(tree.glob("packages/*/src")))
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    env = {**os.environ, "PYTHONPATH": sources}
    return subprocess.run([*command, "--no-cache"], cwd=tree, env=env, text=True, capture_output=True)


@pytest.mark.parametrize(
    "line",
    [
        "import automodel_data\n",
        "def lazily():\n    from automodel_ckpt import save\n    return save\n",
        "import automodel_recipes\n",
    ],
    ids=["sibling", "lazy", "upwards"],
)
def test_a_forbidden_import_breaks_it(tree, line):
    file = tree / "packages/automodel-core/src/automodel_core/forbidden.py"
    file.write_text(line)
    try:
        done = lint_imports(tree)
    finally:
        file.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "automodel_core.forbidden" in done.stdout


def test_the_tree_as_it_is_passes(tree):
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr

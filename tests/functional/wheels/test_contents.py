"""What is in a wheel is looked at before it is published, and the check can fail."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GOOD = {
    "automodel_x/__init__.py": "",
    "automodel_x/py.typed": "",
    "automodel_x-1.dist-info/licenses/LICENSE": "Apache",
    "automodel_x-1.dist-info/METADATA": "Name: automodel-x\nDescription-Content-Type: text/markdown\n",
}


@pytest.fixture(scope="module")
def check_wheels():
    spec = importlib.util.spec_from_file_location("check_wheels", ROOT / "scripts/check_wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder, files):
    path = folder / "automodel_x-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_good_wheel_passes(check_wheels, tmp_path):
    check_wheels.check_contents(make_wheel(tmp_path, GOOD))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"automodel_x/py.typed": None}, "py.typed"),
        ({"automodel_x-1.dist-info/licenses/LICENSE": None}, "LICENSE"),
        ({"tests/test_a.py": ""}, "tests/test_a.py"),
        ({"automodel_x/test_a.py": ""}, "test_a.py"),
        ({"automodel_x/big.bin": "0" * (9 << 20)}, "MiB"),
        ({"automodel_x-1.dist-info/METADATA": "Name: automodel-x\n"}, "README"),
    ],
)
def test_what_is_wrong_is_said(check_wheels, tmp_path, change, message):
    files = {name: text for name, text in {**GOOD, **change}.items() if text is not None}
    with pytest.raises(SystemExit, match=message):
        check_wheels.check_contents(make_wheel(tmp_path, files))


@pytest.mark.more
@pytest.mark.parametrize("name", ["core", "parallel", "kernels", "data", "ckpt", "recipes"])
def test_the_wheel_of_this_tree_is_in_order(check_wheels, tmp_path, name):
    package = ROOT / "packages" / f"automodel-{name}"
    check_wheels.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=package)
    (wheel,) = tmp_path.glob("*.whl")
    check_wheels.check_contents(wheel)

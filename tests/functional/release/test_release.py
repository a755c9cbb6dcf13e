"""Releasing one package changes that package's files alone, and a version that recipes refuses is refused."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts/release.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look a class's module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A git repository with two packages in the workspace's layout."""
    for name in ("data", "recipes"):
        package = tmp_path / "packages" / f"automodel-{name}"
        about = package / "src" / f"automodel_{name}" / "__about__.py"
        about.parent.mkdir(parents=True)
        about.write_text('__version__ = "0.1.0"\n')
        (package / "CHANGELOG.md").write_text(f"# Changelog of automodel-{name}\n\nCollected at release.\n")
        fragments = package / "changelog.d"
        fragments.mkdir()
        (fragments / "b.fixed.md").write_text("A thing works\nagain.\n")
        (fragments / "a.added.md").write_text("A new thing.\n")
    dependencies = 'dependencies = ["automodel-data[vlm]>=0.1.0,<0.2", "click>=8"]\n'
    (tmp_path / "packages/automodel-recipes/pyproject.toml").write_text("[project]\n" + dependencies)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    for key, value in (("user.name", "t"), ("user.email", "t@example.com")):
        subprocess.run(["git", "config", key, value], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "commit", "-qm", "start"], cwd=tmp_path, check=True)
    return tmp_path


def test_only_the_released_package_changes(release, tree):
    made = release.plan(tree, "data", "patch", date="2026-01-31")
    release.write(made)
    release.commit_and_tag(made, tree)
    shown = subprocess.run(
        ["git", "show", "--name-only", "--format=", "HEAD"], cwd=tree, text=True, capture_output=True, check=True
    ).stdout.split()
    assert shown
    assert all(path.startswith("packages/automodel-data/") for path in shown)
    tags = subprocess.run(["git", "tag"], cwd=tree, text=True, capture_output=True, check=True).stdout.split()
    assert tags == ["automodel-data-v0.1.1"]
    package = tree / "packages/automodel-data"
    assert (package / "src/automodel_data/__about__.py").read_text() == '__version__ = "0.1.1"\n'
    assert list((package / "changelog.d").iterdir()) == []
    text = (package / "CHANGELOG.md").read_text()
    assert text.index("## 0.1.1 (2026-01-31)") < text.index("### Added") < text.index("### Fixed")
    assert "- A thing works again." in text


def test_a_second_release_stands_above_the_first(release, tree):
    release.write(release.plan(tree, "data", "patch", date="2026-01-31"))
    (tree / "packages/automodel-data/changelog.d/c.added.md").write_text("More.\n")
    release.write(release.plan(tree, "data", "patch", date="2026-02-28"))
    text = (tree / "packages/automodel-data/CHANGELOG.md").read_text()
    assert text.startswith("# Changelog of automodel-data\n")
    assert text.index("Collected at release.") < text.index("## 0.1.2") < text.index("## 0.1.1")
    assert text.count("A new thing.") == 1


def test_a_version_outside_the_range_of_recipes_is_refused(release, tree):
    with pytest.raises(release.ReleaseError, match=r"<0\.2: 0\.2\.0 is outside"):
        release.plan(tree, "data", "minor", date="2026-01-31")
    assert release.plan(tree, "recipes", "minor", date="2026-01-31").version == "0.2.0"


@pytest.mark.parametrize("to, message", [("0.1.0", "not above"), ("0.0.9", "not above"), ("1.0", "no version")])
def test_a_version_that_does_not_go_up_is_refused(release, tree, to, message):
    with pytest.raises(release.ReleaseError, match=message):
        release.plan(tree, "data", to, date="2026-01-31")


def test_a_fragment_of_no_kind_is_refused(release, tree):
    (tree / "packages/automodel-data/changelog.d/c.misc.md").write_text("?\n")
    with pytest.raises(release.ReleaseError, match=r"c\.misc\.md"):
        release.plan(tree, "data", "patch", date="2026-01-31")


def test_nothing_to_say_is_nothing_to_release(release, tree):
    shutil.rmtree(tree / "packages/automodel-data/changelog.d")
    with pytest.raises(release.ReleaseError, match="no changelog fragments"):
        release.plan(tree, "data", "patch", date="2026-01-31")


@pytest.mark.parametrize("name", ["core", "parallel", "kernels", "data", "ckpt", "recipes"])
def test_every_fragment_of_the_workspace_has_a_kind(release, name):
    for path in (ROOT / "packages" / f"automodel-{name}" / "changelog.d").glob("*.md"):
        assert path.name.split(".")[-2] in release.KINDS, path
        assert path.read_text().strip(), path

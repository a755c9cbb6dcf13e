"""Release one package: collect its changelog fragments, set its version, commit and tag.

    python scripts/release.py data minor --dry-run
    python scripts/release.py data 0.2.0

Only that package's files change: ``__about__.py``, ``CHANGELOG.md`` and the fragments, in one commit with the tag
``automodel-data-v0.2.0``; the release workflow builds and publishes from the tag. A version that the range in
automodel-recipes does not admit is refused: recipes would not install beside it.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("added", "changed", "deprecated", "removed", "fixed")
PARTS = ("major", "minor", "patch")


class ReleaseError(ValueError):
    """The release cannot be made; says why and what to do."""


@dataclass(frozen=True)
class Release:
    """What a release writes."""

    name: str
    version: str
    about: Path
    changelog: Path
    fragments: tuple[Path, ...]
    about_text: str
    changelog_text: str

    @property
    def tag(self) -> str:
        return f"automodel-{self.name}-v{self.version}"


def plan(root: Path, name: str, to: str, *, date: str) -> Release:
    """Work out a release without writing anything.

    Args:
        root: the workspace.
        name: the package's short name, such as ``data``.
        to: ``major``, ``minor``, ``patch``, or a version such as ``0.2.0``.
        date: for the changelog, ``2026-01-31``.
    Raises: ReleaseError: no such package, nothing to release, a version that does not go up, or one outside the range
        of automodel-recipes.
    """
    package = root / "packages" / f"automodel-{name}"
    if not package.is_dir():
        known = sorted(path.name.removeprefix("automodel-") for path in (root / "packages").iterdir())
        raise ReleaseError(f"no package {name!r}; there are {', '.join(known)}.")
    about = package / "src" / f"automodel_{name}" / "__about__.py"
    text = about.read_text()
    current = re.search(r'__version__ = "([^"]+)"', text)
    if current is None:
        raise ReleaseError(f"{about} holds no __version__.")
    version = next_version(current[1], to)
    fragments = tuple(sorted((package / "changelog.d").glob("*.md")))
    if not fragments:
        raise ReleaseError(f"automodel-{name} has no changelog fragments: nothing that users see has changed.")
    refuse_outside_range(root, name, version)
    changelog = package / "CHANGELOG.md"
    return Release(
        name=name,
        version=version,
        about=about,
        changelog=changelog,
        fragments=fragments,
        about_text=text.replace(current[0], f'__version__ = "{version}"'),
        changelog_text=insert_entry(changelog.read_text(), entry(version, date, fragments)),
    )


def next_version(current: str, to: str) -> str:
    """The version after ``current``; ``to`` is a part to raise, or the version itself."""
    numbers = _numbers(current)
    if to in PARTS:
        index = PARTS.index(to)
        return ".".join(str(n) for n in [*numbers[:index], numbers[index] + 1, *[0] * (2 - index)])
    if _numbers(to) <= numbers:
        raise ReleaseError(f"version {to} is not above {current}; give a higher one.")
    return to


def _numbers(version: str) -> list[int]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"{version!r} is no version; write three numbers, or {', '.join(PARTS)}.")
    return [int(part) for part in version.split(".")]


def refuse_outside_range(root: Path, name: str, version: str) -> None:
    """Raises: ReleaseError: automodel-recipes does not admit this version of the package."""
    project = tomllib.loads((root / "packages/automodel-recipes/pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        match = re.fullmatch(r"([a-z-]+)(?:\[[^]]*\])?>=([\d.]+),<([\d.]+)", dependency)
        if match is None or match[1] != f"automodel-{name}":
            continue
        ceiling = [int(part) for part in match[3].split(".")]
        if _numbers(version)[: len(ceiling)] >= ceiling:
            raise ReleaseError(
                f"automodel-recipes takes {dependency}: {version} is outside. Widen the range in "
                "packages/automodel-recipes/pyproject.toml in a commit that also tests the two together."
            )


def entry(version: str, date: str, fragments: tuple[Path, ...]) -> str:
    """The changelog's section: fragments by kind, in the order of their names."""
    by_kind: dict[str, list[str]] = {}
    for path in fragments:
        kind = path.name.split(".")[-2]
        if kind not in KINDS:
            raise ReleaseError(f"{path.name}: the kind before .md must be one of {', '.join(KINDS)}. Rename it.")
        by_kind.setdefault(kind, []).append(" ".join(path.read_text().split()))
    lines = [f"## {version} ({date})", ""]
    for kind in KINDS:
        if kind in by_kind:
            lines += [f"### {kind.capitalize()}", "", *(f"- {text}" for text in by_kind[kind]), ""]
    return "\n".join(lines)


def insert_entry(changelog: str, section: str) -> str:
    """Put a section above the newest one, below the introduction."""
    position = changelog.find("\n## ")
    if position < 0:
        return f"{changelog.rstrip()}\n\n{section}"
    return f"{changelog[:position].rstrip()}\n\n{section}\n{changelog[position + 1 :]}"


def write(release: Release) -> None:
    """Write the files of a release; the fragments are gone afterwards."""
    release.about.write_text(release.about_text)
    release.changelog.write_text(release.changelog_text)
    for path in release.fragments:
        path.unlink()


def commit_and_tag(release: Release, root: Path) -> None:
    """One commit that holds this package's files and nothing else, and its tag."""
    paths = [str(path) for path in (release.about, release.changelog, *release.fragments)]
    message = f"{release.name}: release {release.version}"
    for command in (
        ["add", "--", *paths],
        ["commit", "-m", message, "--", *paths],
        ["tag", "-m", message, release.tag],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the package's short name")
    parser.add_argument("to", help="major, minor, patch, or a version")
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    options = parser.parse_args(argv)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        release = plan(ROOT, options.name, options.to, date=today)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{release.tag}\n\n{entry(release.version, today, release.fragments)}")
    if options.dry_run:
        return 0
    write(release)
    commit_and_tag(release, ROOT)
    print(f"next: git push origin HEAD {release.tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

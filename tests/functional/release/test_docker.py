"""The images are pinned, run without rights, carry no secret, and copy only what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "docker").glob("Dockerfile*"))


def instructions(path):
    """(name, arguments) of every instruction, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def file(request):
    return instructions(request.param)


def test_there_are_two():
    assert [path.name for path in FILES] == ["Dockerfile", "Dockerfile.cpu"]


def test_instructions_are_known(file):
    known = {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD", "ARG", "LABEL"}
    assert {name for name, _ in file} <= known


def test_bases_are_pinned(file):
    for name, arguments in file:
        if name == "FROM":
            assert re.search(r":[\w.-]*\d", arguments.split()[0]), arguments
            assert "latest" not in arguments


def test_the_last_user_has_no_rights(file):
    users = [arguments for name, arguments in file if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    position = {name: index for index, (name, _) in enumerate(file)}
    assert position["USER"] < position["ENTRYPOINT"]
    assert position["USER"] > position["RUN"]


def test_no_secret_is_baked_in(file):
    text = " ".join(arguments for name, arguments in file if name in ("ENV", "ARG", "RUN", "COPY"))
    assert not re.search(r"token|password|secret|api_key|\.netrc|\.ssh", text, re.IGNORECASE)


def test_what_is_copied_is_let_in_by_dockerignore(file):
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, arguments in file:
        if name == "COPY" and "--from" not in arguments:
            source = arguments.split()[0]
            assert source in allowed
            assert (ROOT / source).exists()


def test_package_installs_leave_no_cache(file):
    for name, arguments in file:
        if name == "RUN" and "pip install" in arguments:
            assert "--no-cache-dir" in arguments
        if name == "RUN" and "apt-get install" in arguments:
            assert "--no-install-recommends" in arguments
            assert "rm -rf /var/lib/apt/lists" in arguments


def test_torch_is_the_version_that_the_workspace_pins(file):
    pin = re.search(r'"torch==([\d.]+)"', (ROOT / "hatch.toml").read_text())[1]
    assert any(f"torch=={pin}" in arguments for _, arguments in file)

"""Links of the documentation lead somewhere, and the commands in it exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

from automodel_recipes.cli.app import cli

ROOT = Path(__file__).resolve().parents[3]
OUTSIDE = ("http://", "https://", "mailto:")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")])
LINK = re.compile(r"(?<!!)\[[^]]+\]\(([^)\s]+)\)")


def name(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(without_code(page.read_text())):
        if link.startswith(OUTSIDE):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text()), link


def commands(text):
    """Our command lines in the shell blocks of a page."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["automodel-recipes"]:
                yield words[1:]


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page.read_text()))], ids=name)
def test_commands_and_their_options_exist(page):
    for words in commands(page.read_text()):
        command, context = cli, click.Context(cli)
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            assert found is not None, f"no command {words[0]}"
            command, words = found, words[1:]
        if command.context_settings.get("help_option_names") == []:
            continue  # handed on to another program whole
        options = [option for p in command.params for option in (*p.opts, *p.secondary_opts)]
        known = {*options, "--help", "-h", "--version"}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z][a-z-]*(=|$)", word)}
        assert used <= known, (words, used - known)


def test_the_index_lists_every_page():
    index = (ROOT / "docs/index.md").read_text()
    listed = {(ROOT / "docs" / link).resolve() for link in LINK.findall(index)}
    assert set((ROOT / "docs").glob("*.md")) - listed == {ROOT / "docs/index.md"}

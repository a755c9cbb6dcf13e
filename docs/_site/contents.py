"""The table of contents: the index's own links in their order, then the decisions and the generated pages."""

import re
from pathlib import Path

from links import GENERATED
from pages import WHEELS

from automodel_recipes.schema import RECIPES

_PAGE = re.compile(r"\]\(([\w/-]+)\.md\)")


def add_contents(app, docname, source):
    """Sphinx ``source-read``: append the contents to the index, in place."""
    if docname != "index":
        return
    docs = Path(app.srcdir)
    pages = [page for page in dict.fromkeys(_PAGE.findall(source[0])) if not page.startswith("adr/")]
    generated = GENERATED.relative_to(docs)
    parts = {
        "Guide": pages,
        "Wheels": [f"{generated}/wheels/{name}" for name in WHEELS],
        "Reference": [
            f"{generated}/commands",
            *(f"{generated}/config/{recipe}" for recipe in RECIPES),
            *(f"{generated}/api/{name}" for name in WHEELS),
        ],
        "Project": [
            f"{generated}/contributing",
            f"{generated}/security",
            *sorted(f"adr/{page.stem}" for page in (docs / "adr").glob("*.md")),
        ],
    }
    source[0] += "".join(toctree(caption, names) for caption, names in parts.items())


def toctree(caption: str, pages: list[str]) -> str:
    """A hidden ``toctree``, shown in the side bar."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", ":maxdepth: 1", "", *pages, "```", ""])

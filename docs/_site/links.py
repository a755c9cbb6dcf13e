"""Links that are right on disk, made right on the site, which holds only what lies under ``docs/``."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "docs" / "_generated"

# Pages outside docs/ that the site shows, and the name of the copy.
COPIES = {
    ROOT / "CONTRIBUTING.md": GENERATED / "contributing.md",
    ROOT / "SECURITY.md": GENERATED / "security.md",
    **{
        ROOT / f"packages/automodel-{name}/README.md": GENERATED / f"wheels/{name}.md"
        for name in ("core", "parallel", "kernels", "data", "ckpt", "recipes")
    },
}
COPIES |= {page.parent: copy for page, copy in COPIES.items() if page.parent != ROOT}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(```.*?```)", re.DOTALL)


def rewrite_links(app, docname, source):
    """Sphinx ``source-read``: rewrite the links of one page in place."""
    page = Path(app.srcdir) / f"{docname}.md"
    if GENERATED not in page.parents:
        source[0] = rewrite(source[0], here=page.parent, target=page.parent)


def rewrite(text: str, *, here: Path, target: Path) -> str:
    """Links of a page that is written for folder ``here`` and shown in folder ``target``.

    A link to another page goes to that page's place on the site; a link to any other file of the repository, which the
    site does not hold, becomes the path as text.
    """

    def link(match: re.Match) -> str:
        mark, label, address = match.groups()
        path, _, anchor = address.partition("#")
        if not path or re.match(r"[a-z]+:", address):
            return match[0]
        file = (here / path).resolve()
        if file in COPIES:
            file = COPIES[file]
        elif ROOT / "docs" not in file.parents and not mark:
            return f"{label} (`{file.relative_to(ROOT)}`)"
        relative = os.path.relpath(file, target)
        return f"{mark}[{label}]({relative}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)

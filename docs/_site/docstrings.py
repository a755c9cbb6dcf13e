"""House docstrings for napoleon: a section may begin on its heading's line (``Returns: the loss.``)."""

import re

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Source|Yields):(?: (.+))?$")


def open_sections(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx ``autodoc-process-docstring``: give every section a heading line of its own, in place."""
    opened: list[str] = []
    inline = False
    for line in lines:
        match = _SECTION.match(line)
        if match is None:
            inline = inline and bool(line.strip())
            opened.append(f"    {line.strip()}" if inline else line)
            continue
        inline = match[2] is not None
        opened += ["", f"{match[1]}:", *([f"    {match[2]}"] if inline else [])]
    lines[:] = opened

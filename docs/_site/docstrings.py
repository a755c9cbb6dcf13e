"""House docstrings for napoleon: a section may begin on its heading's line (``Returns: the loss.``)."""

import re

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Source|Yields):(?: (.+))?$")


def open_sections(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx ``autodoc-process-docstring``: give every section a heading line and its text one line, in place."""
    opened: list[str] = []
    inline = False
    for line in lines:
        match = _SECTION.match(line)
        if match is not None:
            inline = match[2] is not None
            opened += ["", f"{match[1]}:", *([f"    {match[2]}"] if inline else [])]
        elif inline and line.strip():
            # Napoleon takes a second line for a second exception.
            opened[-1] += f" {line.strip()}"
        else:
            inline = False
            opened.append(line)
    lines[:] = opened

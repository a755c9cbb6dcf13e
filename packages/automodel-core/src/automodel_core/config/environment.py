"""``${NAME}`` and ``${NAME,default}`` in scalars."""

import re
from collections.abc import Mapping
from typing import Any

from automodel_core.config.scalars import parse_plain
from automodel_core.config.secret import Secret, is_secret_variable

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?:,([^{}]*))?\})?")


def has_reference(text: str) -> bool:
    """Whether ``text`` refers to an environment variable (or holds an escaped ``$${``)."""
    return "${" in text


def substitute(text: str, environment: Mapping[str, str], *, typed: bool) -> Any:
    """Replace every reference in ``text``.

    Args:
        text: a scalar; ``$${`` stands for a literal ``${``.
        environment: usually ``os.environ``.
        typed: give a scalar that is one whole reference the type of its text (``${LR,1e-4}`` is a float).

    Returns: the value; a :class:`Secret` when a variable's name says that it holds one.
    Raises: ValueError: a variable is not set and has no default, or a reference is malformed.
    """
    secret = False

    def replace(match: re.Match[str]) -> str:
        nonlocal secret
        if match[0] == "$${":
            return "${"
        name, default = match[1], match[2]
        if name is None:
            raise ValueError(
                f"malformed reference in {text!r}; write ${{NAME}} or ${{NAME,default}} ($${{ for the text itself)"
            )
        secret = secret or is_secret_variable(name)
        if name in environment:
            return environment[name]
        if default is None:
            raise ValueError(f"environment variable {name} is not set; set it, or give a default: ${{{name},default}}")
        return default

    whole = _REFERENCE.fullmatch(text)
    value = _REFERENCE.sub(replace, text)
    if secret:
        return Secret(value)
    return parse_plain(value) if typed and whole and whole[1] else value

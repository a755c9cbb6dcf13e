"""Which type a plain scalar has: YAML 1.2's core rules, where ``1e-4`` is a number and ``no`` is a word."""

import math
import re
from typing import Any

_NULL = re.compile(r"~|null|Null|NULL|None|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?=[.eE])(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


def parse_plain(text: str) -> Any:
    """The value of an unquoted scalar: None, bool, int, float or str.

    ``None`` is null as well, because people who write Python mean it. ``012`` stays a string: it is an identifier
    more often than a number. Dates stay strings.
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) <= 40:
        return int(text.replace("_", ""), 0)
    if _FLOAT.fullmatch(text) and len(text) <= 400:
        return float(text.replace("_", ""))
    return _SPECIAL.get(text.lower(), text)

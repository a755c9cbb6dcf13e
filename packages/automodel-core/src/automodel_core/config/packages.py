"""``pkg://PACKAGE/REL/PATH``: data inside an installed package, found without importing it."""

import importlib.util
from pathlib import Path

PREFIX = "pkg://"


def is_package_path(value: object) -> bool:
    """Whether ``value`` is a ``pkg://`` string."""
    return isinstance(value, str) and value.startswith(PREFIX)


def resolve_package_path(value: str) -> str:
    """The absolute path that a ``pkg://PACKAGE/REL/PATH`` string names.

    Raises: ValueError: the package is not installed, the path leaves it, or nothing lies there.
    """
    package, _, relative = value.removeprefix(PREFIX).partition("/")
    if not package.isidentifier() or not relative:
        raise ValueError(f"{value!r} is not pkg://PACKAGE/REL/PATH; name a top-level package and a path inside it")
    if "\\" in relative or any(part in ("", ".", "..") for part in relative.rstrip("/").split("/")):
        raise ValueError(f"{value!r} must stay inside the package; write plain folder names, without '..' or '\\'")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{value!r}: package {package!r} is not installed; install it, or give an ordinary path")
    for root in spec.submodule_search_locations:
        candidate = Path(root, relative)
        if candidate.exists():
            return str(candidate.resolve())
    raise ValueError(
        f"{value!r}: {package} holds no {relative!r}; check the path, or the installed version of {package}"
    )

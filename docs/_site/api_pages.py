"""API reference of a wheel: what its package and public subpackages export, from the docstrings."""

import importlib
import inspect
import pkgutil


def api_page(package: str) -> str:
    """A MyST page with the public classes and functions of a package and of subpackages that have an ``__all__``."""
    lines = [f"# {package}", "", *directive("automodule", package), ""]
    seen: set[int] = set()
    for module in [package, *subpackages(package)]:
        names = [name for name in public_names(module) if fresh(module, name, seen)]
        if names:
            lines += [f"## {module}", ""]
            for name in names:
                lines += [*entry(module, name), ""]
    return "\n".join(lines) + "\n"


def subpackages(package: str) -> list[str]:
    """Subpackages with public names, sorted; a leading underscore is private."""
    root = importlib.import_module(package)
    found = [info.name for info in pkgutil.iter_modules(root.__path__) if info.ispkg and not info.name.startswith("_")]
    return [f"{package}.{name}" for name in sorted(found)]


def public_names(module: str) -> list[str]:
    """``__all__`` without dunder names; nothing for a module that has none."""
    return sorted(name for name in getattr(importlib.import_module(module), "__all__", ()) if not name.startswith("__"))


def fresh(module: str, name: str, seen: set[int]) -> bool:
    """Whether a class or function has not been shown yet: a package's name comes first, its home is not shown again."""
    thing = getattr(importlib.import_module(module), name)
    if not callable(thing) or id(thing) in seen:
        return False
    seen.add(id(thing))
    return True


def entry(module: str, name: str) -> list[str]:
    """The directive for one object."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing):
        options = {"members": ""} | ({"inherited-members": ""} if is_ours(thing) else {})
        return directive("autoclass", f"{module}.{name}", **options)
    return directive("autofunction", f"{module}.{name}")


def is_ours(thing: type) -> bool:
    """Whether a class inherits from nothing but classes of ours: only then are inherited methods worth a page."""
    return all(base.__module__.startswith("automodel_") for base in thing.__mro__[:-1])


def directive(kind: str, argument: str, **options: str) -> list[str]:
    """An autodoc directive inside MyST."""
    lines = [f".. {kind}:: {argument}", *(f"   :{key}: {value}".rstrip() for key, value in options.items())]
    return ["```{eval-rst}", *lines, "```"]

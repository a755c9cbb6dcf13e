"""``_target_`` to the object it names, when that is allowed."""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from automodel_core.config.kinds import KINDS, KNOWN_LIBRARIES, Kind, matches
from automodel_core.config.policy import NOTHING_ALLOWED, Policy
from automodel_core.config.suggest import did_you_mean, near

GROUP = "automodel.components"


@functools.cache
def components() -> dict[str, EntryPoint]:
    """Short names that installed packages register in the entry-point group ``automodel.components``."""
    return {point.name: point for point in entry_points(group=GROUP)}


def check_name(target: str, policy: Policy) -> None:
    """Refuse, before anything is imported, a name that could not be allowed whatever it is.

    Raises: ValueError: not a short name, not in a known library, not allowed on the command line, or malformed.
    """
    if target in components() or policy.allows(target):
        return
    if ".py:" in target or target.endswith(".py"):
        raise ValueError(f"{target!r} is a file of code; allow it with --allow-target {target.partition(':')[0]}")
    if "." not in target:
        raise ValueError(f"no component is called {target!r}{did_you_mean(target, components())}")
    if not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(f"{target!r} is not a dotted path; write package.module.Name or a short name")
    top = target.partition(".")[0]
    if top not in KNOWN_LIBRARIES:
        match = near(top, KNOWN_LIBRARIES)
        hint = f' (did you mean "{match}"?)' if match else ""
        raise ValueError(
            f"{target!r} is neither a registered component nor in a known library{hint}; "
            f"if you trust it, allow it with --allow-target {top}"
        )
    if any(part.startswith("_") for part in target.split(".")):
        raise ValueError(f"{target!r} names something private; use a public name, or --allow-target {target}")


def resolve_target(target: str, policy: Policy = NOTHING_ALLOWED, kind: Kind | None = None) -> Callable[..., Any]:
    """Import what a target names.

    Args:
        target: a short name, a dotted path, or ``file.py:symbol``.
        policy: what the command line allowed.
        kind: the kind that the role needs; None for any of the known kinds.

    Raises: ValueError: the target is refused, does not exist, fails to import (with the cause), or has another kind.
    """
    check_name(target, policy)
    registered = target in components()
    if registered:
        found, method = _load_entry_point(components()[target]), None
    elif ".py:" in target:
        found, method = _load_file(target), None
    else:
        found, method = _import_dotted(target, strict=not policy.allows(target))
    value = getattr(found, method) if method else found
    if not callable(value):
        raise ValueError(f"{target!r} is a {type(value).__name__}, not something to call; name a class or function")
    if not policy.allows(target):
        _check_kind(target, found, method, kind, registered=registered)
    return value


def _load_entry_point(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"component {point.name!r} ({point.value}) does not import: {_cause(error)}") from error


def _load_file(target: str) -> Any:
    file, _, symbol = target.rpartition(":")
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(f"automodel_target_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{target!r}: no such file; give the path of a Python file")
    module = sys.modules.get(spec.name) if getattr(sys.modules.get(spec.name), "__file__", "") == str(path) else None
    if module is None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up by name
        spec.loader.exec_module(module)
    if not hasattr(module, symbol):
        raise ValueError(f"{file} has no {symbol!r}{did_you_mean(symbol, _public(module))}")
    return getattr(module, symbol)


def _import_dotted(target: str, *, strict: bool) -> tuple[Any, str | None]:
    """The class or function, and the class method after it if there is one."""
    parts = target.split(".")
    module, rest = _import_longest(parts, target)
    if not rest:
        raise ValueError(
            f"{target!r} is a module; name a class or function in it{did_you_mean('', _public(module)[:8])}"
        )
    if not hasattr(module, rest[0]):
        raise ValueError(f"{module.__name__} has no {rest[0]!r}{did_you_mean(rest[0], _public(module))}")
    found = getattr(module, rest[0])
    if len(rest) == 1:
        return found, None
    if strict and (len(rest) > 2 or not inspect.isclass(found)):
        raise ValueError(
            f"{target!r} reaches through {rest[0]!r}; a target is a class, its class method, or a function"
        )
    for name in rest[1:-1]:
        found = getattr(found, name)
    if not hasattr(found, rest[-1]):
        raise ValueError(f"{'.'.join(parts[:-1])} has no {rest[-1]!r}{did_you_mean(rest[-1], _public(found))}")
    return found, rest[-1]


def _import_longest(parts: list[str], target: str) -> tuple[ModuleType, list[str]]:
    """Import packages as far as the path goes through them; the rest are names inside the last one."""
    module = _import_module(parts[0], target)
    if module is None:
        raise ValueError(f"{target!r}: package {parts[0]!r} is not installed; install it with pip")
    for position, part in enumerate(parts[1:], start=1):
        name = ".".join(parts[: position + 1])
        try:
            below = getattr(module, part, None)
        except ImportError as error:  # a lazy module whose part lacks a dependency
            raise ValueError(f"{target!r} does not import: {_cause(error)}") from error
        if below is None and isinstance(getattr(module, "__path__", None), list):
            below = _import_module(name, target)
        if not isinstance(below, ModuleType) or below.__name__ != name:
            return module, parts[position:]
        module = below
    return module, []


def _import_module(name: str, target: str) -> ModuleType | None:
    """The module, or None when there is none of that name.

    Raises: ValueError: it is there but does not import; with the cause.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{name}.".startswith(f"{error.name}.")
        ):
            return None
        raise ValueError(f"{target!r} does not import: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _public(holder: Any) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("_")]


def _check_kind(target: str, found: Any, method: str | None, kind: Kind | None, *, registered: bool) -> None:
    is_class = inspect.isclass(found)
    bases = [f"{base.__module__}.{base.__qualname__}" for base in found.__mro__] if is_class else []
    module = getattr(found, "__module__", None) or ""
    of = [
        other
        for other in KINDS.values()
        if matches(other, bases=bases, module=module, is_class=is_class, method=method)
    ]
    check_kinds(target, [other.name for other in of], kind, registered=registered)


def check_kinds(target: str, names: list[str], kind: Kind | None, *, registered: bool) -> None:
    """Refuse a target whose kinds (``names``) do not serve the role.

    A registered component of no known kind is accepted: whoever installed its package chose it.

    Raises: ValueError: says what the role needs and what the target is.
    """
    if kind is None:
        if not names and not registered:
            raise ValueError(
                f"{target!r} is not a model, dataset, optimizer, loss, configuration or other component; "
                f"a configuration cannot call it. If you trust it, allow it with --allow-target {target}"
            )
        return
    if kind.name in names or (registered and not set(names) - {"config"}):
        return
    if not names:
        raise ValueError(
            f"{target!r} is not {kind.what}, and a configuration cannot call it; "
            f"if you trust it, allow it with --allow-target {target}"
        )
    raise ValueError(f"{target!r} is {KINDS[names[0]].what}, but this section needs {kind.what}; name one of those")

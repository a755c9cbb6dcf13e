"""Changes from the command line: ``a.b=c``, ``--a.b=c``, ``--a.b c`` and ``~a.b``."""

import os
from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.loader import parse_tree, read_leaf
from automodel_core.config.secret import MASK, is_secret_key
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Entry, Leaf, Sequence, Source, Table, Tree, children


@dataclass(frozen=True)
class Override:
    """One change: a dotted path and the text of its value (None deletes the key)."""

    path: str
    value: str | None

    @property
    def source(self) -> Source:
        """Says ``override a.b=c``; a secret's value is left out."""
        secret = is_secret_key(self.path.rpartition(".")[2])
        shown = f"~{self.path}" if self.value is None else f"{self.path}={MASK if secret else self.value}"
        return Source(f"override {shown}", origin="override")


def parse_overrides(arguments: SequenceABC[str]) -> list[Override]:
    """Read overrides as they stand on a command line. Values may hold ``=``.

    Raises: ConfigError: an argument is none of the four forms.
    """
    overrides: list[Override] = []
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        dashed = word.startswith("--")
        path, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("~") and not equals:
            overrides.append(Override(word[1:], None))
        elif _is_path(path) and equals:
            overrides.append(Override(path, value))
        elif _is_path(path) and dashed and rest and not rest[0].startswith("--"):
            overrides.append(Override(path, rest.pop(0)))
        else:
            message = "not an override; write a.b=value, --a.b value, or ~a.b to remove a key"
            problems.append(Problem(Source(f"override {word}", origin="override"), "", message))
    if problems:
        raise ConfigError(problems)
    return overrides


def _is_path(text: str) -> bool:
    return bool(text) and all(text.split(".")) and not text.startswith("-") and not any(c.isspace() for c in text)


def apply_overrides(
    root: Table, overrides: SequenceABC[Override], environment: Mapping[str, str] | None = None
) -> list[Problem]:
    """Apply each override to ``root`` in place and in order; returns what could not be applied."""
    problems: list[Problem] = []
    for override in overrides:
        problem = _apply(root, override, environment, problems)
        if problem:
            problems.append(Problem(override.source, override.path, problem))
    return problems


def _apply(
    root: Table, override: Override, environment: Mapping[str, str] | None, problems: list[Problem]
) -> str | None:
    parts = override.path.split(".")
    parent: Tree = root
    for depth, part in enumerate(parts[:-1]):
        child = dict(children(parent)).get(part)
        if child is None:
            if override.value is None or not isinstance(parent, Table):
                return _missing(parent, part)
            child = Table(override.source)
            parent.entries[part] = Entry(override.source, child)
        if isinstance(child, Leaf):
            if child.value is not None or override.value is None or not isinstance(parent, Table):
                return f"{'.'.join(parts[: depth + 1])} is a single value, it has no key {parts[depth + 1]!r}"
            child = Table(override.source)  # `peft:` left empty in the file is a section without keys
            parent.entries[part] = Entry(override.source, child)
        parent = child
    if override.value is None:
        return _delete(parent, parts[-1])
    return _assign(parent, parts[-1], _read_value(override, environment, problems), override.source)


def _read_value(override: Override, environment: Mapping[str, str] | None, problems: list[Problem]) -> Tree:
    text = override.value or ""
    variables = os.environ if environment is None else environment
    try:
        if text[:1] not in ("[", "{", '"', "'"):
            # One plain scalar, whatever colons, hashes or equals signs it holds.
            return read_leaf(text, path=override.path, source=override.source, environment=variables)
        tree, found = parse_tree(text, file="", environment=variables, origin="override", path=override.path)
    except ConfigError as error:
        problems.append(Problem(override.source, override.path, error.problems[0].message))
        return Leaf(None, override.source)
    except ValueError as error:
        problems.append(Problem(override.source, override.path, str(error)))
        return Leaf(None, override.source)
    problems += [Problem(override.source, problem.path, problem.message) for problem in found]
    _relocate(tree, override.source)
    return tree


def _relocate(tree: Tree, source: Source) -> None:
    """Every part of an override comes from the override, not from a line of its text."""
    tree.source = source
    if isinstance(tree, Table):
        for entry in tree.entries.values():
            entry.key_source = source
    for _, child in children(tree):
        _relocate(child, source)


def _assign(parent: Tree, key: str, value: Tree, source: Source) -> str | None:
    if isinstance(parent, Table):
        parent.entries[key] = Entry(source, value)
        return None
    assert isinstance(parent, Sequence)
    if not key.isdecimal() or int(key) >= len(parent.items):
        return _missing(parent, key)
    parent.items[int(key)] = value
    return None


def _delete(parent: Tree, key: str) -> str | None:
    if isinstance(parent, Table) and key in parent.entries:
        del parent.entries[key]
        return None
    if isinstance(parent, Sequence) and key.isdecimal() and int(key) < len(parent.items):
        del parent.items[int(key)]
        return None
    return _missing(parent, key)


def _missing(parent: Tree, key: str) -> str:
    if isinstance(parent, Sequence):
        return f"no item {key!r} in a list of {len(parent.items)}; items count from 0"
    return f"no key {key!r} here{did_you_mean(key, (name for name, _ in children(parent)))}"

"""The configuration as it was written: tables, sequences and leaves that know their file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Source:
    """Where a value was written."""

    file: str
    line: int = 0
    """1-based; 0 when the value does not come from a file."""
    column: int = 0
    origin: str = "file"
    """``file``, ``override`` or ``default``."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass
class Leaf:
    """A scalar: the value to use, and the text to save (``${VAR}`` stays unresolved in the latter)."""

    value: Any
    source: Source
    raw: str | None = None
    """The text as written, where it holds ``${NAME}``."""


@dataclass
class Entry:
    """A key's own place, and what stands behind it."""

    key_source: Source
    value: Tree


@dataclass
class Table:
    """A mapping with string keys, in the order of the file."""

    source: Source
    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass
class Sequence:
    """A list."""

    source: Source
    items: list[Tree] = field(default_factory=list)


Tree: TypeAlias = Leaf | Table | Sequence


def join(path: str, key: str | int) -> str:
    """``join("a", "b") == "a.b"``; the root's path is empty."""
    return f"{path}.{key}" if path else str(key)


def children(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """The direct children with their keys; list items are keyed ``"0"``, ``"1"``, ..."""
    if isinstance(tree, Table):
        for key, entry in tree.entries.items():
            yield key, entry.value
    elif isinstance(tree, Sequence):
        for index, item in enumerate(tree.items):
            yield str(index), item


def walk(tree: Tree, path: str = "") -> Iterator[tuple[str, Tree]]:
    """Every node below and including ``tree``, parents first, with dotted paths."""
    yield path, tree
    for key, child in children(tree):
        yield from walk(child, join(path, key))


def find(tree: Tree, path: str) -> Tree | None:
    """The node at a dotted path, or None. A key that itself holds dots is found when spelt out whole."""
    if not path:
        return tree
    if isinstance(tree, Table) and path in tree.entries:
        return tree.entries[path].value
    head, _, rest = path.partition(".")
    for key, child in children(tree):
        if key == head:
            return find(child, rest)
    return None

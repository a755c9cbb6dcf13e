"""A configuration that is being rewritten: every edit is noted with the place of the key it concerns."""

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

from automodel_core.config.tree import Entry, Leaf, Sequence, Source, Table, Tree, find

Outcome = Literal["mapped", "without effect", "unknown"]


@dataclass(frozen=True)
class Note:
    """What became of one key."""

    source: Source
    path: str
    outcome: Outcome
    message: str

    def __str__(self) -> str:
        return f"{self.source} {self.path}: {self.message}"


@dataclass
class Draft:
    """A tree to edit in place, and the notes about it. Paths are dotted; a key that is not there is no edit."""

    root: Table
    notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, root: Table) -> "Draft":
        return cls(copy.deepcopy(root))

    def get(self, path: str) -> Any:
        """The plain value at a path; None where there is none, a tree for tables and lists."""
        found = find(self.root, path)
        return found.value if isinstance(found, Leaf) else found

    def table(self, path: str) -> Table | None:
        found = find(self.root, path)
        return found if isinstance(found, Table) else None

    def drop(self, path: str, reason: str) -> None:
        """Take a key out that is recognised and has no effect here; ``reason`` says why."""
        entry = self._take(path)
        if entry is not None:
            self._note(entry.key_source, path, "without effect", reason)

    def move(self, path: str, to: str, why: str = "") -> None:
        """Give a key another path. One that already stands there stays, and the moved one is reported as unknown."""
        entry = self._take(path)
        if entry is None:
            return
        if find(self.root, to) is not None:
            self._note(entry.key_source, path, "unknown", f"{to} is set as well; keep one of the two")
            return
        self._put(to, entry)
        self._note(entry.key_source, path, "mapped", f"is {to}{f' ({why})' if why else ''}")

    def replace(self, path: str, value: Any, why: str) -> None:
        """Give an existing key another value."""
        parent, name = self._parent(path)
        if parent is None or name not in parent.entries:
            return
        source = parent.entries[name].key_source
        parent.entries[name] = Entry(source, to_tree(value, source))
        self._note(source, path, "mapped", why)

    def add(self, path: str, value: Any, source: Source) -> None:
        """Write a key that the source implies, unless it is there."""
        if find(self.root, path) is None:
            self._put(path, Entry(source, to_tree(value, source)))

    def unknown(self, path: str, message: str) -> None:
        """Report a key that has no counterpart, and leave it where it is."""
        parent, name = self._parent(path)
        if parent is not None and name in parent.entries:
            self._note(parent.entries[name].key_source, path, "unknown", message)

    def _note(self, source: Source, path: str, outcome: Outcome, message: str) -> None:
        self.notes.append(Note(source, path, outcome, message))

    def _parent(self, path: str) -> tuple[Table | None, str]:
        if path in self.root.entries:
            return self.root, path
        above, _, name = path.rpartition(".")
        return (self.table(above) if above else self.root), name

    def _take(self, path: str) -> Entry | None:
        parent, name = self._parent(path)
        return parent.entries.pop(name, None) if parent is not None else None

    def _put(self, path: str, entry: Entry) -> None:
        table = self.root
        *above, name = path.split(".")
        for key in above:
            below = table.entries.get(key)
            if below is None or not isinstance(below.value, Table):
                below = table.entries[key] = Entry(entry.key_source, Table(entry.key_source))
            table = below.value  # type: ignore[assignment]
        table.entries[name] = entry


def to_tree(value: Any, source: Source) -> Tree:
    """Plain values as a tree whose nodes all have one source; a tree stays as it is."""
    if isinstance(value, (Leaf, Table, Sequence)):
        return value
    if isinstance(value, dict):
        return Table(source, {key: Entry(source, to_tree(item, source)) for key, item in value.items()})
    if isinstance(value, list):
        return Sequence(source, [to_tree(item, source) for item in value])
    return Leaf(value, source)


def to_plain(tree: Tree) -> Any:
    """Dicts, lists and scalars; text with ``${NAME}`` as it was written."""
    if isinstance(tree, Table):
        return {key: to_plain(entry.value) for key, entry in tree.entries.items()}
    if isinstance(tree, Sequence):
        return [to_plain(item) for item in tree.items]
    return tree.value if tree.raw is None else tree.raw

"""The engine for forms that differ from ours by names: a table from their paths to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from automodel_core.config.tree import Leaf, Sequence, Table, walk
from automodel_recipes.migrate.draft import Draft, to_plain


@dataclass(frozen=True)
class To:
    """Where a key goes. ``value`` rewrites its plain value, and raises LookupError for one that has no counterpart."""

    path: str
    value: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class FlatDialect:
    """One tool's form."""

    title: str
    keys: Mapping[str, To]
    """Their dotted path: ours."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Their dotted path: why it has no effect here. A path of a table stands for all below it."""
    before: Callable[[Draft], None] | None = None
    """Edits that need more than one key, on their form."""
    after: Callable[[Draft, Draft], None] | None = None
    """Edits of the result, (result, source)."""


def translate(source: Draft, dialect: FlatDialect) -> Draft:
    """A new draft in our form; every key of the source gets a note."""
    if dialect.before is not None:
        dialect.before(source)
    result = Draft(Table(source.root.source))
    result.notes = source.notes
    for path, reason in dialect.ignored.items():
        source.drop(path, reason)
    for path, to in dialect.keys.items():
        _translate_key(source, result, path, to)
    for path, tree in list(walk(source.root)):
        if path and (isinstance(tree, (Leaf, Sequence)) and not path.rpartition(".")[2].isdecimal()):
            source.unknown(
                path, f"no counterpart of this {dialect.title} key is known; remove it or say it in our form"
            )
    if dialect.after is not None:
        dialect.after(result, source)
    return result


def _translate_key(source: Draft, result: Draft, path: str, to: To) -> None:
    entry = source._take(path)
    if entry is None:
        return
    if isinstance(entry.value, Leaf) and entry.value.value is None:
        source._note(entry.key_source, path, "mapped", "null: our default")
        return
    value: Any = entry.value
    if to.value is not None:
        theirs = to_plain(entry.value)
        try:
            value = to.value(theirs)
        except LookupError:
            source._note(
                entry.key_source, path, "unknown", f"{theirs!r} has no counterpart here; set {to.path} by hand"
            )
            return
    result.add(to.path, value, entry.key_source)
    source._note(entry.key_source, path, "mapped", f"is {to.path}")

"""``includes:``: a configuration begins with other files and changes what it names itself."""

from collections.abc import Callable
from pathlib import Path

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.packages import is_package_path, resolve_package_path
from automodel_core.config.tree import Entry, Leaf, Sequence, Table, Tree

KEY = "includes"
_MAX_DEPTH = 8
_TARGET = "_target_"

Reader = Callable[[str, tuple[str, ...]], tuple[Table, list[Problem]]]


def with_includes(table: Table, *, file: str, above: tuple[str, ...], read: Reader) -> tuple[Table, list[Problem]]:
    """The file's own table over those that it includes, a later one over an earlier one.

    Args:
        table: the file as it is written; its ``includes`` key is taken out.
        file: its path, from whose folder relative paths start.
        above: the files that lead to this one, absolute, this one last.
        read: gives a file's table, its own includes put in.

    Returns: the whole, each value still with its own file and line; and problems that leave a usable tree.
    Raises: ConfigError: not a list of paths, no such file, or a file that includes itself.
    """
    entry = table.entries.pop(KEY, None)
    whole, problems = Table(table.source), []
    for leaf in _paths(entry) if entry is not None else []:
        path = _located(leaf, file)
        if str(Path(path).resolve()) in above:
            raise ConfigError([Problem(leaf.source, KEY, f"{leaf.value!r} includes itself; remove it here")])
        if len(above) > _MAX_DEPTH:
            raise ConfigError([Problem(leaf.source, KEY, f"files include one another more than {_MAX_DEPTH} deep")])
        base, found = read(path, above)
        whole = merged(whole, base)
        problems += found
    return merged(whole, table), problems


def merged(base: Table, over: Table) -> Table:
    """``base`` with what ``over`` says: tables key by key, anything else, and a table of another target, whole."""
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries[key].value if key in entries else None
        together = isinstance(below, Table) and isinstance(entry.value, Table) and not _is_other(below, entry.value)
        value = merged(below, entry.value) if together else entry.value  # type: ignore[arg-type]
        entries[key] = Entry(entry.key_source, value)
    return Table(over.source, entries)


def _is_other(below: Table, above: Table) -> bool:
    """Whether a section names another class or function: then the keys below are not meant for it."""
    return _TARGET in above.entries and _text(above.entries[_TARGET].value) != _text(
        below.entries[_TARGET].value if _TARGET in below.entries else None
    )


def _text(tree: Tree | None) -> object:
    return tree.value if isinstance(tree, Leaf) else None


def _paths(entry: Entry) -> list[Leaf]:
    items = entry.value.items if isinstance(entry.value, Sequence) else [entry.value]
    leaves = [item for item in items if isinstance(item, Leaf) and isinstance(item.value, str)]
    if len(leaves) != len(items):
        raise ConfigError([Problem(entry.value.source, KEY, "must be the path of a YAML file, or a list of paths")])
    return leaves


def _located(leaf: Leaf, file: str) -> str:
    if is_package_path(leaf.value):
        try:
            return resolve_package_path(leaf.value)
        except ValueError as error:
            raise ConfigError([Problem(leaf.source, KEY, str(error))]) from None
    path = Path(file).parent / Path(leaf.value).expanduser()
    if not path.is_file():
        message = f"{leaf.value!r}: no such file; a relative path starts at the folder of the file that includes it"
        raise ConfigError([Problem(leaf.source, KEY, message)])
    return str(path)

"""YAML (or JSON) text to a tree in which every node knows its line and column."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from automodel_core.config.environment import has_reference, substitute
from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.scalars import parse_plain
from automodel_core.config.secret import Secret, is_secret_key
from automodel_core.config.tree import Entry, Leaf, Sequence, Source, Table, Tree, join

MAX_BYTES = 1 << 20
"""A configuration is written by people; anything larger is data that got into the wrong argument."""

_MAX_NODES = 50_000  # after aliases are expanded: a few lines of nested aliases can stand for gigabytes
_MAX_DEPTH = 64


class _Composer(yaml.SafeLoader):
    """Composes nodes without resolving scalars: types are decided by :func:`parse_plain`."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class declares it so


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a configuration file.

    Raises: ConfigError: the file is missing, unreadable, a directory, larger than 1 MiB, or not UTF-8.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _file_error(name, "no such file; give the path of a YAML file") from None
    except OSError as error:
        raise _file_error(name, f"cannot be read ({error.strerror}); give the path of a readable YAML file") from error
    if len(data) > MAX_BYTES:
        raise _file_error(
            name, f"larger than {MAX_BYTES >> 20} MiB; a configuration holds settings: keep data in files of its own"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        source = Source(name, line, column)
        raise ConfigError(
            [Problem(source, "", f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")]
        ) from None
    # JSON allows tabs between tokens and forbids them inside strings, so this changes no value and no column.
    return text.replace("\t", " ") if name.lower().endswith(".json") else text


def _file_error(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(Source(name), "", message)])


def parse_tree(
    text: str,
    *,
    file: str,
    environment: Mapping[str, str] | None = None,
    origin: str = "file",
    resolve: bool = True,
    path: str = "",
) -> tuple[Tree, list[Problem]]:
    """Parse one YAML document.

    Args:
        text: the document.
        file: the name shown in problems.
        environment: where ``${NAME}`` is looked up; ``os.environ`` when None.
        origin: ``origin`` of every :class:`Source` made.
        resolve: look up ``${NAME}``; otherwise references stay as text.
        path: dotted path of the document's root, for a document that is one value of another.

    Returns: the tree, and the problems that leave a usable tree (duplicate keys, unset variables, tags).
    Raises: ConfigError: the text is not YAML.
    """
    try:
        root = yaml.compose(text, _Composer)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, text, file)]) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError([_character_problem(error, text, file)]) from None
    except RecursionError:
        raise _file_error(file, f"nested deeper than {_MAX_DEPTH} levels; flatten it") from None
    if root is None:
        raise _file_error(file, "is empty; a configuration is a mapping of sections such as model: and dataset:")
    reader = _TreeReader(file, os.environ if environment is None else environment, origin, resolve)
    return reader.read(root, path, 0), reader.problems


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    source = Source(file, mark.line + 1, mark.column + 1) if mark else Source(file)
    what = error.problem or error.context or "not valid YAML"
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "'\\t'" in what or "\t" in line[: len(line) - len(line.lstrip())]:
        column = line.index("\t") + 1 if "\t" in line else source.column
        return Problem(Source(file, source.line, column), "", "a tab cannot indent YAML; use spaces")
    if "found undefined alias" in what:
        return Problem(source, "", f"{what}; define the anchor with & before the line that uses it")
    if "expected a single document" in f"{error.context}":
        return Problem(source, "", "a second document begins here; a configuration is one document: remove '---'")
    if error.context and "flow" in error.context and "${" in line:
        message = "a ${NAME} inside [ ] or { } must be quoted (and is then text); or write one item per line"
        return Problem(source, "", message)
    context = f" ({error.context})" if error.context and error.problem else ""
    return Problem(source, "", f"not valid YAML: {what}{context}; check indentation, quotes and colons here")


def _character_problem(error: Any, text: str, file: str) -> Problem:
    before = text[: error.position]
    source = Source(file, before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
    return Problem(source, "", f"character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it")


class _TreeReader:
    """Converts composed nodes; collects problems as it goes."""

    def __init__(self, file: str, environment: Mapping[str, str], origin: str, resolve: bool) -> None:
        self.file = file
        self.environment = environment
        self.origin = origin
        self.resolve = resolve
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node, path: str, depth: int) -> Tree:
        source = self._source(node)
        self._count += 1
        if self._count > _MAX_NODES:
            raise ConfigError([Problem(source, path, f"aliases expand to more than {_MAX_NODES} values; write fewer")])
        if depth > _MAX_DEPTH:
            raise ConfigError([Problem(source, path, f"nested deeper than {_MAX_DEPTH} levels; flatten it")])
        if id(node) in self._open:
            raise ConfigError(
                [Problem(source, path, "an anchor contains itself; an alias cannot stand inside its own anchor")]
            )
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path, depth, source)
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, path, "tag:yaml.org,2002:seq")
                items = [self.read(item, join(path, index), depth + 1) for index, item in enumerate(node.value)]
                return Sequence(source, items)
            assert isinstance(node, yaml.ScalarNode)
            return self._read_scalar(node, path, source)
        finally:
            self._open.discard(id(node))

    def _source(self, node: yaml.Node) -> Source:
        return Source(self.file, node.start_mark.line + 1, node.start_mark.column + 1, self.origin)

    def _read_mapping(self, node: yaml.MappingNode, path: str, depth: int, source: Source) -> Table:
        self._check_tag(node, path, "tag:yaml.org,2002:map")
        table = Table(source)
        merged: list[Table] = []
        for key_node, value_node in node.value:
            key_source = self._source(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(key_source, path, "a key must be a word, not a list or mapping"))
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                merged += self._read_merge(value_node, path, depth)
                continue
            if key in table.entries:
                first = table.entries[key].key_source.line
                message = f"duplicate key, first given on line {first}; keep one of the two"
                self.problems.append(Problem(key_source, join(path, key), message))
                continue
            table.entries[key] = Entry(key_source, self.read(value_node, join(path, key), depth + 1))
        for other in merged:
            for key, entry in other.entries.items():
                table.entries.setdefault(key, entry)
        return table

    def _read_merge(self, node: yaml.Node, path: str, depth: int) -> list[Table]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        tables = []
        for item in nodes:
            tree = self.read(item, path, depth + 1)
            if isinstance(tree, Table):
                tables.append(tree)
            else:
                self.problems.append(Problem(tree.source, join(path, "<<"), "only mappings can be merged with <<"))
        return tables

    def _check_tag(self, node: yaml.Node, path: str, *allowed: str) -> bool:
        if node.tag in allowed:
            return True
        shown = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.problems.append(
            Problem(self._source(node), path, f"tag {shown} is not allowed; a configuration is plain YAML")
        )
        return False

    def _read_scalar(self, node: yaml.ScalarNode, path: str, source: Source) -> Leaf:
        self._check_tag(node, path, "tag:yaml.org,2002:str")
        environment = self.environment if self.resolve else None
        try:
            return read_leaf(node.value, path=path, source=source, environment=environment, plain=node.style is None)
        except ValueError as error:
            self.problems.append(Problem(source, path, str(error)))
            return Leaf(None, source, raw=node.value)


def read_leaf(
    text: str, *, path: str, source: Source, environment: Mapping[str, str] | None, plain: bool = True
) -> Leaf:
    """The leaf that a scalar's text stands for.

    Args:
        text: the scalar, without quotes.
        path: its dotted path; a last key such as ``api_key`` makes the value a :class:`Secret`.
        source: where it was written.
        environment: where ``${NAME}`` is looked up; None leaves references as text.
        plain: whether it was written without quotes, so that ``1`` is a number.

    Raises: ValueError: a variable is not set, or a reference is malformed.
    """
    value: Any = parse_plain(text) if plain else text
    if environment is not None and has_reference(text):
        value = substitute(text, environment, typed=plain)
    if value is not None and value != "" and is_secret_key(path.rpartition(".")[2]) and not isinstance(value, Secret):
        value = Secret(str(value))
    return Leaf(value, source, raw=text if has_reference(text) else None)

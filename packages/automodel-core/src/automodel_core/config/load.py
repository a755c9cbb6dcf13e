"""``load_config``: file, then overrides, then one object to read."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.includes import with_includes
from automodel_core.config.loader import parse_tree, read_text
from automodel_core.config.node import ConfigNode
from automodel_core.config.overrides import apply_overrides, parse_overrides
from automodel_core.config.policy import Policy
from automodel_core.config.remote_code import remote_code_problems
from automodel_core.config.tree import Entry, Leaf, Source, Table, Tree
from automodel_core.config.tree import Sequence as SequenceTree


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    allow_targets: Sequence[str] = (),
    trust_remote_code: bool = False,
    environment: Mapping[str, str] | None = None,
) -> ConfigNode:
    """Read a YAML or JSON configuration and apply overrides.

    Args:
        path: the file.
        overrides: ``a.b=c``, ``--a.b=c``, ``--a.b`` followed by ``c``, or ``~a.b`` to remove a key. Values have YAML's
            types and may hold ``=``; ``a.0.b`` reaches into lists.
        allow_targets: prefixes that ``_target_`` may name besides registered components and the known libraries.
        trust_remote_code: accept ``trust_remote_code: true`` where a revision is pinned.
        environment: where ``${NAME}`` is looked up; ``os.environ`` when None.

    Raises: ConfigError: with every problem of the file's form: missing or unreadable, not UTF-8, not YAML, larger than
        1 MiB, duplicate keys, unset variables, anchors that contain themselves, overrides that fit nowhere,
        code of a model repository that nobody allowed, files to include that are not there.
    """
    tree, problems = _read_file(os.fspath(path), (), environment)
    policy = Policy(tuple(allow_targets), trust_remote_code)
    problems += apply_overrides(tree, parse_overrides(overrides), environment)
    problems += remote_code_problems(tree, policy)
    if problems:
        raise ConfigError(problems)
    return ConfigNode(tree, policy=policy)


def _read_file(name: str, above: tuple[str, ...], environment: Mapping[str, str] | None) -> tuple[Table, list[Problem]]:
    """A file's table with its includes put in."""
    tree, problems = parse_tree(read_text(name), file=name, environment=environment)
    if not isinstance(tree, Table):
        message = "a configuration is a mapping of sections such as model: and dataset:, not a list or a single value"
        raise ConfigError([Problem(tree.source, "", message)])
    own = (*above, str(Path(name).resolve()))
    whole, found = with_includes(tree, file=name, above=own, read=lambda path, by: _read_file(path, by, environment))
    return whole, problems + found


def config_from_dict(values: Mapping[str, Any], *, allow_targets: Sequence[str] = ()) -> ConfigNode:
    """The configuration that a dict describes, for use from Python; every value's origin is ``python``."""
    tree = _from_plain(values, Source("python", origin="python"))
    assert isinstance(tree, Table)
    policy = Policy(tuple(allow_targets))
    problems = remote_code_problems(tree, policy)
    if problems:
        raise ConfigError(problems)
    return ConfigNode(tree, policy=policy)


def _from_plain(value: Any, source: Source) -> Tree:
    if isinstance(value, Mapping):
        return Table(source, {str(key): Entry(source, _from_plain(item, source)) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return SequenceTree(source, [_from_plain(item, source) for item in value])
    return Leaf(value, source)

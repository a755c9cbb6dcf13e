"""Call a section's ``_target_`` with its keys, nested targets first."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.kinds import kind_of_role
from automodel_core.config.packages import is_package_path, resolve_package_path
from automodel_core.config.policy import Policy
from automodel_core.config.secret import Secret
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.targets import resolve_target
from automodel_core.config.tree import Leaf, Table, Tree, join
from automodel_core.config.tree import Sequence as SequenceTree

TARGET = "_target_"


def build(
    table: Table, *, path: str, runtime: Mapping[str, Any], policy: Policy, offered: Mapping[str, Any] | None = None
) -> Any:
    """Build the object that a section describes; see :meth:`ConfigNode.instantiate`."""
    target = resolve(table, path=path, policy=policy)
    problems = [
        Problem(entry.key_source, join(path, key), "is given by the recipe at run time; remove it here")
        for key, entry in table.entries.items()
        if key in runtime
    ]
    problems += keyword_problems(target, table, path, given=list(runtime))
    if problems:
        raise ConfigError(problems)
    keywords = {
        key: _value(entry.value, join(path, key), policy, offered or {})
        for key, entry in table.entries.items()
        if key != TARGET
    }
    if _binds_later(target, path):
        return functools.partial(target, **keywords, **runtime)
    try:
        return target(**keywords, **runtime)
    except Exception as error:
        error.add_note(f"{table.source} {path}: while building {_text(table)}")
        raise


def resolve(table: Table, *, path: str, policy: Policy) -> Callable[..., Any]:
    """The class or function that a section's ``_target_`` names; see :meth:`ConfigNode.target`."""
    if TARGET not in table.entries:
        message = "has no _target_; name the class or function that makes it"
        raise ConfigError([Problem(table.source, path, message)])
    leaf = table.entries[TARGET].value
    if not isinstance(leaf, Leaf) or not isinstance(leaf.value, str):
        raise ConfigError([Problem(leaf.source, join(path, TARGET), "must be a name such as torch.optim.AdamW")])
    try:
        return resolve_target(leaf.value, policy, kind_of_role(path))
    except ValueError as error:
        raise ConfigError([Problem(leaf.source, join(path, TARGET), str(error))]) from error


def _text(table: Table) -> str:
    leaf = table.entries[TARGET].value
    return str(leaf.value) if isinstance(leaf, Leaf) else TARGET


def _value(tree: Tree, path: str, policy: Policy, offered: Mapping[str, Any]) -> Any:
    if isinstance(tree, Table):
        if TARGET in tree.entries:
            taken = _taken(offered, tree, path, policy) if offered else {}
            return build(tree, path=path, runtime=taken, policy=policy, offered=offered)
        return {key: _value(entry.value, join(path, key), policy, offered) for key, entry in tree.entries.items()}
    if isinstance(tree, SequenceTree):
        return [_value(item, join(path, index), policy, offered) for index, item in enumerate(tree.items)]
    try:
        if is_package_path(tree.value):
            return resolve_package_path(tree.value)
        if path.rpartition(".")[2].endswith("_fn") and isinstance(tree.value, str):
            return resolve_target(tree.value, policy, kind_of_role(path))
    except ValueError as error:
        raise ConfigError([Problem(tree.source, path, str(error))]) from error
    return tree.value.reveal() if isinstance(tree.value, Secret) else tree.value


def _taken(offered: Mapping[str, Any], table: Table, path: str, policy: Policy) -> dict[str, Any]:
    """Those of the offered objects that the table's target takes by name and that the table does not give itself."""
    try:
        parameters = inspect.signature(resolve(table, path=path, policy=policy)).parameters
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        return {}  # builtins without a signature take nothing of ours
    return {name: value for name, value in offered.items() if name in parameters and name not in table.entries}


def keyword_problems(
    target: Callable[..., Any],
    table: Table,
    path: str,
    *,
    given: Sequence[str] = (),
    offered: Sequence[str] = (),
    also: Sequence[str] = (),
) -> list[Problem]:
    """Compare a section's keys with a target's signature; every misfit at once.

    Args:
        target: what the section calls.
        table: the section.
        path: its dotted path.
        given: keywords that the caller passes for certain.
        offered: keywords that the caller passes where the target takes them.
        also: keys that the caller reads itself.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []  # builtins without a signature: the call itself says what is wrong
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = [p.name for p in by_name]
    keys = [key for key in table.entries if key != TARGET]
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        options = [name for name in named if name not in given]
        for key in [key for key in keys if key not in (*named, *also)]:
            message = f"unknown key for {_text(table)}{did_you_mean(key, options)}"
            problems.append(Problem(table.entries[key].key_source, join(path, key), message))
        surplus = [key for key in given if key not in named]
        if surplus:
            message = f"{_text(table)} does not take {', '.join(surplus)}, which the recipe passes; name another target"
            problems.append(Problem(table.source, path, message))
    required = [] if _binds_later(target, path) else [p.name for p in by_name if p.default is p.empty]
    for name in required:
        if name not in (*keys, *given, *offered):
            message = f"{_text(table)} needs {name!r}; add `{name}:` to this section"
            problems.append(Problem(table.source, path, message))
    return problems


def _binds_later(target: Callable[..., Any], path: str) -> bool:
    """Whether the section describes a function to be called later (``collate_fn``), not its result."""
    return path.rpartition(".")[2].endswith("_fn") and not inspect.isclass(target)

"""Call a section's ``_target_`` with its keys, nested targets first."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.kinds import kind_of_role
from automodel_core.config.packages import is_package_path, resolve_package_path
from automodel_core.config.policy import Policy
from automodel_core.config.secret import Secret
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.targets import resolve_target
from automodel_core.config.tree import Leaf, Sequence, Table, Tree, join

TARGET = "_target_"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation_internal", "custom_pipelines")


def build(table: Table, *, path: str, runtime: Mapping[str, Any], policy: Policy) -> Any:
    """Build the object that a section describes; see :meth:`ConfigNode.instantiate`."""
    target = resolve(table, path=path, policy=policy)
    problems = [
        Problem(entry.key_source, join(path, key), "is given by the recipe at run time; remove it here")
        for key, entry in table.entries.items()
        if key in runtime
    ]
    problems += remote_code_problems(table, path, policy)
    if problems:
        raise ConfigError(problems)
    keywords = {
        key: _value(entry.value, join(path, key), policy) for key, entry in table.entries.items() if key != TARGET
    }
    binds_later = path.rpartition(".")[2].endswith("_fn") and not inspect.isclass(target)
    _check_keywords(target, keywords, runtime, table, path, partial=binds_later)
    if binds_later:
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


def _value(tree: Tree, path: str, policy: Policy) -> Any:
    if isinstance(tree, Table):
        if TARGET in tree.entries:
            return build(tree, path=path, runtime={}, policy=policy)
        return {key: _value(entry.value, join(path, key), policy) for key, entry in tree.entries.items()}
    if isinstance(tree, Sequence):
        return [_value(item, join(path, index), policy) for index, item in enumerate(tree.items)]
    try:
        if is_package_path(tree.value):
            return resolve_package_path(tree.value)
        if path.rpartition(".")[2].endswith("_fn") and isinstance(tree.value, str):
            return resolve_target(tree.value, policy, kind_of_role(path))
    except ValueError as error:
        raise ConfigError([Problem(tree.source, path, str(error))]) from error
    return tree.value.reveal() if isinstance(tree.value, Secret) else tree.value


def remote_code_problems(table: Table, path: str, policy: Policy) -> list[Problem]:
    """Keys of this section (not of nested ones) that would run code from a model repository without consent."""
    problems = []
    for key, entry in table.entries.items():
        if key in _FORBIDDEN_KEYS:
            message = "would choose code to run; a configuration may not, remove it"
            problems.append(Problem(entry.key_source, join(path, key), message))
    trust = table.entries.get("trust_remote_code")
    if trust is None or not isinstance(trust.value, Leaf) or trust.value.value in (False, None):
        return problems
    place, source = join(path, "trust_remote_code"), trust.key_source
    if not policy.trust_remote_code:
        message = "runs the repository's code; give --trust-remote-code on the command line as well, or remove it"
        problems.append(Problem(source, place, message))
    elif not _is_pinned(table):
        message = "needs `revision:` with the 40-digit commit that you have read, so that the code cannot change"
        problems.append(Problem(source, place, message))
    return problems


def _is_pinned(table: Table) -> bool:
    def text(key: str) -> str:
        entry = table.entries.get(key)
        return str(entry.value.value) if entry and isinstance(entry.value, Leaf) else ""

    is_local = (
        Path(text("pretrained_model_name_or_path") or "\0").is_dir() if text("pretrained_model_name_or_path") else False
    )
    return is_local or _COMMIT.fullmatch(text("revision")) is not None


def _check_keywords(
    target: Callable[..., Any],
    keywords: Mapping[str, Any],
    runtime: Mapping[str, Any],
    table: Table,
    path: str,
    *,
    partial: bool,
) -> None:
    """Compare the keys with the target's signature, and report all that does not fit at once."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return  # builtins without a signature: the call itself says what is wrong
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = [p.name for p in by_name]
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        options = [name for name in named if name not in runtime]
        for key in [key for key in keywords if key not in named]:
            message = f"unknown key for {_text(table)}{did_you_mean(key, options)}"
            problems.append(Problem(table.entries[key].key_source, join(path, key), message))
        surplus = [key for key in runtime if key not in named]
        if surplus:
            message = f"{_text(table)} does not take {', '.join(surplus)}, which the recipe passes; name another target"
            problems.append(Problem(table.source, path, message))
    required = [] if partial else [p.name for p in by_name if p.default is p.empty]
    for name in required:
        if name not in keywords and name not in runtime:
            message = f"{_text(table)} needs {name!r}; add `{name}:` to this section"
            problems.append(Problem(table.source, path, message))
    if problems:
        raise ConfigError(problems)

"""The configuration as recipes read it: a read-only mapping that remembers where each value was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.packages import is_package_path, resolve_package_path
from automodel_core.config.policy import Policy
from automodel_core.config.scalars import parse_plain
from automodel_core.config.secret import MASK, Secret
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Leaf, Sequence, Source, Table, Tree, find, join


class ConfigNode(Mapping[str, Any]):
    """A section of a configuration.

    ``node.optimizer.lr``, ``node["optimizer"]``, ``node.get("optimizer.lr", 1e-3)`` and ``"optimizer.lr" in node`` read
    it; nothing changes it. A key named like a method (``get``, ``items``, ``path``) is read by subscript.
    """

    def __init__(self, tree: Table, *, path: str = "", policy: Policy | None = None) -> None:
        self._tree = tree
        self._path = path
        self._policy = policy or Policy()

    def __getitem__(self, key: str) -> Any:
        if key not in self._tree.entries:
            raise KeyError(key)
        return self._view(self._tree.entries[key].value, join(self._path, key))

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._tree.entries:
            place = f"{self._tree.source} {self._path or 'the configuration'}"
            raise AttributeError(f"{place}: no key {key!r}{did_you_mean(key, self._tree.entries)}")
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree.entries)

    def __len__(self) -> int:
        return len(self._tree.entries)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and find(self._tree, path) is not None

    def __repr__(self) -> str:
        return f"ConfigNode({self.to_dict()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self._tree, self._path, self._policy))

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or ``default`` when there is none."""
        tree = find(self._tree, path)
        return default if tree is None else self._view(tree, join(self._path, path))

    def source(self, path: str = "") -> Source:
        """Where the value at a dotted path was written (this section itself for an empty path).

        Raises: KeyError: there is no such value.
        """
        tree = find(self._tree, path)
        if tree is None:
            raise KeyError(path)
        return tree.source

    def path(self, path: str, default: str | None = None) -> str | None:
        """The string at a dotted path; ``pkg://PACKAGE/REL`` becomes the absolute path of the package's file.

        Raises: ConfigError: a ``pkg://`` path names nothing.
        """
        tree = find(self._tree, path)
        if isinstance(tree, Leaf):
            return _located(tree, join(self._path, path))
        return default

    def instantiate(self, offered: Mapping[str, Any] | None = None, /, **runtime: Any) -> Any:
        """Call the section's ``_target_`` with its other keys, nested targets first.

        Args:
            offered: objects for nested targets: each gets those that it takes by name and the YAML does not give.
            **runtime: objects that only the caller has (``params``, ``tokenizer``); a key that is also in the YAML is
                an error, so neither silently wins.

        Returns: what the target returns. In a section whose name ends in ``_fn``, a function is not called but bound
            to the keys (``functools.partial``), and a class is instantiated.
        Raises: ConfigError: the target is unknown, not allowed, does not import, or does not take these keys.
        """
        from automodel_core.config.instantiate import build

        return build(self._tree, path=self._path, runtime=runtime, policy=self._policy, offered=offered)

    def without(self, *keys: str) -> ConfigNode:
        """The same section less some of its own keys, which its reader takes itself."""
        entries = {key: entry for key, entry in self._tree.entries.items() if key not in keys}
        return ConfigNode(Table(self._tree.source, entries), path=self._path, policy=self._policy)

    def error(self, path: str, message: str) -> ConfigError:
        """A ConfigError about the value at a dotted path, to be raised by whoever reads it."""
        tree = find(self._tree, path)
        source = tree.source if tree is not None else self._tree.source
        return ConfigError([Problem(source, join(self._path, path) if path else self._path, message)])

    def to_dict(self, *, raw: bool = False) -> dict[str, Any]:
        """Plain dicts, lists and scalars.

        Args:
            raw: give the form to save: ``${VAR}`` and ``pkg://`` as written, and ``***`` for a secret that is written
                out. Otherwise the values to use: variables replaced, ``pkg://`` as absolute paths.

        Raises: ConfigError: a ``pkg://`` path names nothing (not with ``raw``).
        """
        return {key: _plain(entry.value, join(self._path, key), raw=raw) for key, entry in self._tree.entries.items()}

    def to_yaml(self) -> str:
        """The form to save (see ``raw`` of :meth:`to_dict`); loaded again it gives the same values."""
        from automodel_core.config.dump import to_yaml

        return to_yaml(_raw(self._tree))

    def target(self) -> Any:
        """The class or function that ``_target_`` names, without calling it.

        Raises: ConfigError: there is none, or it is refused.
        """
        from automodel_core.config.instantiate import resolve

        return resolve(self._tree, path=self._path, policy=self._policy)

    @property
    def tree(self) -> Table:
        """The section with the place of every key and value."""
        return self._tree

    @property
    def policy(self) -> Policy:
        """What the command line allowed this configuration to do."""
        return self._policy

    def _view(self, tree: Tree, path: str) -> Any:
        if isinstance(tree, Table):
            return ConfigNode(tree, path=path, policy=self._policy)
        if isinstance(tree, Sequence):
            return [self._view(item, join(path, index)) for index, item in enumerate(tree.items)]
        return tree.value


def _rebuild(tree: Table, path: str, policy: Policy) -> ConfigNode:
    return ConfigNode(tree, path=path, policy=policy)


def _plain(tree: Tree, path: str, *, raw: bool) -> Any:
    if isinstance(tree, Table):
        return {key: _plain(entry.value, join(path, key), raw=raw) for key, entry in tree.entries.items()}
    if isinstance(tree, Sequence):
        return [_plain(item, join(path, index), raw=raw) for index, item in enumerate(tree.items)]
    if raw:
        return tree.raw if tree.raw is not None else MASK if isinstance(tree.value, Secret) else tree.value
    return _located(tree, path)


def _raw(tree: Tree) -> Any:
    """As ``_plain(raw=True)``, with quotes kept where they make a reference text."""
    from automodel_core.config.dump import Quoted

    if isinstance(tree, Table):
        return {key: _raw(entry.value) for key, entry in tree.entries.items()}
    if isinstance(tree, Sequence):
        return [_raw(item) for item in tree.items]
    if tree.raw is None:
        return tree.value
    is_text = isinstance(tree.value, str) and not isinstance(parse_plain(tree.value), str)
    return Quoted(tree.raw) if is_text and not isinstance(tree.value, Secret) else tree.raw


def _located(leaf: Leaf, path: str) -> Any:
    """A leaf's value, with ``pkg://`` made a path."""
    if not is_package_path(leaf.value):
        return leaf.value
    try:
        return resolve_package_path(leaf.value)
    except ValueError as error:
        raise ConfigError([Problem(leaf.source, path, str(error))]) from None

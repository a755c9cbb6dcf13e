"""Where every value of a run comes from: a line of the file, an override, or a default of what it is passed to."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from automodel_core.config import ConfigNode
from automodel_core.config.instantiate import TARGET
from automodel_core.config.tree import Leaf, Table, Tree, children, join
from automodel_recipes.schema import DEFAULT_RECIPE
from automodel_recipes.validation.foreign import section_at
from automodel_recipes.validation.sections import taken_signature
from automodel_recipes.validation.signatures import Signature, signature_of
from automodel_recipes.validation.target import Opaque, find_target


@dataclass(frozen=True)
class Row:
    """One value; ``value`` is masked for secrets and ``origin`` is ``file``, ``override`` or ``default``."""

    path: str
    value: Any
    origin: str
    source: str


def provenance(config: ConfigNode, *, defaults: bool = True) -> list[Row]:
    """Every value with its origin, in the order of the file.

    Args:
        config: a loaded configuration.
        defaults: list what the file leaves to the defaults of targets and of the sections present as well.
    """
    rows = []
    for name, entry in config.tree.entries.items():
        rows += list(_rows(entry.value, name))
        if defaults:
            rows += list(_default_rows(entry.value, name, config))
    return rows


def _rows(tree: Tree, path: str) -> Iterator[Row]:
    if isinstance(tree, Leaf):
        yield Row(path, tree.value, tree.source.origin, str(tree.source))
    below = list(children(tree))
    if not below and not isinstance(tree, Leaf):
        yield Row(path, {} if isinstance(tree, Table) else [], tree.source.origin, str(tree.source))
    for key, child in below:
        yield from _rows(child, join(path, key))


def _default_rows(tree: Tree, path: str, config: ConfigNode) -> Iterator[Row]:
    if isinstance(tree, Table):
        for owner, signature, hidden in _signatures(tree, path, config):
            for name, parameter in signature.parameters.items():
                if parameter.default is not None and name not in tree.entries and name not in hidden:
                    yield Row(join(path, name), constant(parameter.default), "default", f"default of {owner}")
    for key, child in children(tree):
        yield from _default_rows(child, join(path, key), config)


def _signatures(table: Table, path: str, config: ConfigNode) -> Iterator[tuple[str, Signature, tuple[str, ...]]]:
    """What a section's keys are passed to: its name, keywords, and the keywords that the recipe supplies."""
    recipe = config.get("recipe", DEFAULT_RECIPE)
    section = section_at(recipe, path)
    hidden = (*section.runtime, *section.offers) if section is not None else ()
    target = table.entries[TARGET].value if TARGET in table.entries else None
    if isinstance(target, Leaf) and isinstance(target.value, str):
        try:
            found = find_target(target.value)
        except (ValueError, Opaque):
            return
        signature = signature_of(found.definition, found.method)
        if signature is not None:
            yield target.value, signature, hidden
    elif section is not None and len(section.takes) == 1:
        signature = taken_signature(section.takes[0])
        if signature is not None:
            yield section.takes[0].partition(":")[2], signature, hidden


_EMPTY: dict[str, Any] = {"list": [], "dict": {}, "tuple": (), "set": set()}


def constant(node: ast.expr) -> Any:
    """The value of a default written as a literal or made by ``field(default_factory=...)``, else its source."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("field"):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        made = given.get("default_factory")
        if isinstance(made, ast.Name) and made.id in _EMPTY:
            return _EMPTY[made.id]
        node = made.body if isinstance(made, ast.Lambda) else given.get("default", node)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)

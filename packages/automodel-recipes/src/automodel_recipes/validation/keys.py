"""Check the keys of a section against the keywords of what they are passed to."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from typing import Any

from automodel_core.config.instantiate import TARGET
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Leaf, Sequence, Table, Tree, join, walk
from automodel_recipes.validation.annotations import annotation_schema, describe, fits
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.signatures import Signature


def check_keywords(
    table: Table,
    path: str,
    report: Report,
    *,
    signatures: SequenceABC[Signature],
    owner: str,
    runtime: SequenceABC[str] = (),
    offers: SequenceABC[str] = (),
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    check_missing: bool = True,
) -> None:
    """Report unknown keys, values of the wrong type, and required keywords that are missing.

    Args:
        table: the section.
        path: its dotted path.
        report: where problems go.
        signatures: whose keywords the keys are; a key may be any one's.
        owner: the name for messages.
        runtime: keywords that the recipe supplies; they must not stand in the section.
        offers: keywords that the recipe supplies where the section does not.
        keys: further keys with their JSON Schemas.
        check_missing: whether the first signature's required keywords must be there.
    """
    schemas = _schemas(signatures, runtime) | dict(keys or {})
    # A target's own signature decides: `build_optimizer(**optimizer_kwargs)` hands on, it does not accept.
    deciding = signatures[:1] if TARGET in table.entries else signatures
    is_open = any(signature.open for signature in deciding)
    for key, entry in table.entries.items():
        if key == TARGET:
            continue
        if key in schemas:
            check_value(entry.value, join(path, key), schemas[key], report)
        elif key in runtime:
            report.add(entry.key_source, join(path, key), "is given by the recipe at run time; remove it here")
        elif not is_open:
            report.add(entry.key_source, join(path, key), f"unknown key for {owner}{did_you_mean(key, schemas)}")
    if check_missing and signatures:
        for name, parameter in signatures[0].parameters.items():
            if parameter.required and name not in (*table.entries, *runtime, *offers):
                report.add(table.source, path, f"{owner} needs {name!r}; add `{name}:` to this section")


def _schemas(signatures: SequenceABC[Signature], runtime: SequenceABC[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for signature in reversed(signatures):
        for name, parameter in signature.parameters.items():
            if name not in runtime:
                found[name] = annotation_schema(parameter.annotation)
    return found


def check_value(tree: Tree, path: str, schema: Mapping[str, Any], report: Report) -> None:
    """Report a value that does not fit its JSON Schema; values built by a nested target are left to that target."""
    if holds_target(tree):
        return
    value = to_plain(tree)
    if not fits(value, dict(schema)):
        report.add(tree.source, path, f"{_shown(value)} is not {describe(dict(schema))}")


def holds_target(tree: Tree) -> bool:
    """Whether a ``_target_`` stands anywhere in ``tree``."""
    return any(isinstance(node, Table) and TARGET in node.entries for _, node in walk(tree))


def to_plain(tree: Tree) -> Any:
    """The values of a tree; secrets stay masked."""
    if isinstance(tree, Table):
        return {key: to_plain(entry.value) for key, entry in tree.entries.items()}
    if isinstance(tree, Sequence):
        return [to_plain(item) for item in tree.items]
    assert isinstance(tree, Leaf)
    return tree.value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

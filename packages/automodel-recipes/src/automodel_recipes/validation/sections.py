"""Check every section of a configuration against its recipe's table, and every nested target."""

import functools

from automodel_core.config.instantiate import TARGET
from automodel_core.config.kinds import KINDS, kind_of_role
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Entry, Leaf, Sequence, Table, Tree, children, join
from automodel_recipes.schema import RECIPES, Section, find_section
from automodel_recipes.validation.foreign import table_of
from automodel_recipes.validation.keys import check_keywords, check_value, holds_target
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.signatures import Signature, signature_of
from automodel_recipes.validation.source import find_definition
from automodel_recipes.validation.target import check_target


def check_sections(root: Table, recipe: str, report: Report) -> None:
    """Check top-level keys, then each section at every depth."""
    for name, entry in root.entries.items():
        section = find_section(recipe, name)
        if section is None:
            message = f"unknown section for {recipe}{did_you_mean(name, RECIPES[recipe])}"
            report.add(entry.key_source, name, message)
        else:
            check_section(name, entry, section, report)
    for name, section in RECIPES[recipe].items():
        if section.required and _is_absent(root.entries.get(name)):
            report.add(root.source, name, f"{recipe} needs a `{name}:` section; add it")


def _is_absent(entry: Entry | None) -> bool:
    return entry is None or (isinstance(entry.value, Leaf) and entry.value.value is None)


def check_section(name: str, entry: Entry, section: Section, report: Report) -> None:
    """Check one section."""
    tree = entry.value
    if section.value is not None:
        check_value(tree, name, section.value, report)
    elif section.is_list:
        if not isinstance(tree, Sequence):
            report.add(tree.source, name, "must be a list; begin each item with a dash")
            return
        for index, item in enumerate(tree.items):
            _check_table(item, join(name, index), name, section, report)
    elif not _is_absent(entry):
        _check_table(tree, name, name, section, report)


def _check_table(tree: Tree, path: str, name: str, section: Section, report: Report) -> None:
    if not isinstance(tree, Table):
        report.add(tree.source, path, "must be a mapping of keys, one `key: value` per line")
        return
    extra = tuple(signature for taken in section.takes if (signature := taken_signature(taken)) is not None)
    if TARGET in tree.entries and section.kind is not None:
        kind = KINDS[section.kind]
        check_target(tree, path, report, kind=kind, runtime=section.runtime, offers=section.offers, extra=extra)
    elif TARGET in tree.entries:
        source = tree.entries[TARGET].key_source
        report.add(source, join(path, TARGET), f"`{name}` takes keys of its own, not a _target_; remove it")
    elif not section.keys and not section.takes:
        report.add(tree.source, path, "has no _target_; name the class or function that makes it")
    else:
        keys = {key: value.schema for key, value in section.keys.items()}
        if not section.takes or len(extra) == len(section.takes):
            check_keywords(
                tree,
                path,
                report,
                signatures=extra,
                owner=f"`{name}`",
                runtime=section.runtime,
                offers=section.offers,
                keys=keys,
                check_missing=len(section.takes) == 1,
            )
    for key, child in children(tree):
        check_nested(child, join(path, key), report, offers=section.offers)


@functools.cache
def taken_signature(taken: str) -> Signature | None:
    """The keywords of ``module:name``; None when its source is not there."""
    module, _, name = taken.partition(":")
    definition = find_definition(module, name)
    return signature_of(definition) if definition is not None else None


def check_nested(tree: Tree, path: str, report: Report, *, offers: tuple[str, ...] = ()) -> None:
    """Check targets below a section, at any depth; ``offers`` is what the recipe supplies to those that take it."""
    if not holds_target(tree):
        return
    if isinstance(tree, Table) and TARGET in tree.entries:
        supplied = ("pad_token_id", "processor", "tokenizer") if path.endswith("collate_fn") else offers
        check_target(tree, path, report, kind=kind_of_role(path), offers=supplied)
    for key, child in children(tree):
        check_nested(child, join(path, key), report, offers=offers)


def check_foreign_recipe(root: Table, recipe: str, report: Report) -> None:
    """For a recipe that another package brings: the sections of the recipe it derives from are checked as there.

    Other sections are its own: their targets are checked by name and keywords.
    """
    base = table_of(recipe)
    for name, entry in root.entries.items():
        section = find_section(base, name) if base is not None else None
        if section is None:
            check_nested(entry.value, name, report)
        else:
            check_section(name, entry, section, report)

"""Check a ``_target_`` section from source: may it stand here, does it exist, does it take these keys."""

from dataclasses import dataclass

from automodel_core.config.instantiate import TARGET
from automodel_core.config.kinds import KINDS, OWN_PACKAGES, Kind, matches
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.targets import check_kinds, check_name, components
from automodel_core.config.tree import Leaf, Table, join
from automodel_recipes.validation.keys import check_keywords
from automodel_recipes.validation.report import Deferred, Report
from automodel_recipes.validation.signatures import Signature, signature_of
from automodel_recipes.validation.source import (
    Definition,
    base_names,
    find_definition,
    is_installed,
    public_names,
    split_target,
)


@dataclass(frozen=True)
class Found:
    """What a target leads to in source."""

    definition: Definition
    method: str | None


class Opaque(Exception):
    """Source alone does not tell; the text says why."""


def check_target(
    table: Table,
    path: str,
    report: Report,
    *,
    kind: Kind | None,
    runtime: tuple[str, ...] = (),
    offers: tuple[str, ...] = (),
    extra: tuple[Signature, ...] = (),
) -> None:
    """Check one section with a ``_target_``, but not its nested targets.

    Args:
        table: the section.
        path: its dotted path.
        report: where problems and undecided targets go.
        kind: the kind that the role needs; None for any.
        runtime: keywords that the recipe supplies; they must not stand in the section.
        offers: keywords that the recipe supplies where the section does not.
        extra: signatures whose keywords are accepted as well.
    """
    leaf = table.entries[TARGET].value
    place = join(path, TARGET)
    if not isinstance(leaf, Leaf) or not isinstance(leaf.value, str):
        report.add(leaf.source, place, "must be a name such as torch.optim.AdamW")
        return
    try:
        check_name(leaf.value, report.policy)
        found = find_target(leaf.value)
        if not report.policy.allows(leaf.value):
            check_found_kind(leaf.value, found, kind)
    except ValueError as error:
        report.add(leaf.source, place, str(error))
        return
    except Opaque as reason:
        report.deferred.append(Deferred(leaf.source, place, leaf.value, str(reason)))
        return
    signature = signature_of(found.definition, found.method)
    if signature is None:
        report.deferred.append(Deferred(leaf.source, place, leaf.value, "its constructor is not written in Python"))
        return
    is_bound_later = path.rpartition(".")[2].endswith("_fn") and not found.definition.is_class
    check_keywords(
        table,
        path,
        report,
        signatures=(signature, *extra),
        owner=leaf.value,
        runtime=runtime,
        offers=offers,
        check_missing=not is_bound_later,
    )


def find_target(target: str) -> Found:
    """Where a permitted target is defined.

    Raises:
        ValueError: it does not exist; suggests a near name.
        Opaque: source alone does not tell.
    """
    if target in components():
        module_name, _, attribute = components()[target].value.partition(":")
        definition = find_definition(module_name, attribute)
        if definition is None:
            raise Opaque(f"{components()[target].value} is not found in source")
        return Found(definition, None)
    if ".py:" in target:
        raise Opaque("it lies in a file")
    top = target.partition(".")[0]
    if not is_installed(top):
        raise ValueError(f"{target!r}: package {top!r} is not installed; install it with pip")
    split = split_target(target)
    if split is None:
        raise Opaque(f"{top} is not written in Python")
    module, rest = split
    if not rest:
        raise ValueError(f"{target!r} is a module; name a class or function in it")
    definition = find_definition(module.name, rest[0])
    if definition is None:
        if top in OWN_PACKAGES and rest[0] not in public_names(module):
            raise ValueError(f"{module.name} has no {rest[0]!r}{did_you_mean(rest[0], public_names(module))}")
        _refuse_unless_dynamic(target, module.name, rest[0])
        raise Opaque(f"{module.name} makes {rest[0]!r} when it is imported")
    if len(rest) > 2 or (len(rest) == 2 and not definition.is_class):
        raise ValueError(f"{target!r} reaches through {rest[0]!r}; name a class, its class method, or a function")
    return Found(definition, rest[1] if len(rest) == 2 else None)


def _refuse_unless_dynamic(target: str, module_name: str, name: str) -> None:
    """A module that makes no names at import time has all of them in its source."""
    split = split_target(module_name)
    assert split is not None
    module = split[0]
    names = public_names(module)
    text = module.path.read_text(encoding="utf-8")
    if name not in names and "__getattr__" not in text and "_LazyModule" not in text and "import *" not in text:
        raise ValueError(f"{module_name} has no {name!r}{did_you_mean(name, names)}")


def check_found_kind(target: str, found: Found, kind: Kind | None) -> None:
    """Refuse a target of the wrong kind.

    Raises: ValueError: says what the role needs and what the target is.
    """
    definition = found.definition
    bases = base_names(definition)
    names = [
        other.name
        for other in KINDS.values()
        if matches(
            other,
            bases=bases,
            module=definition.module.name,
            is_class=definition.is_class,
            method=found.method,
        )
    ]
    check_kinds(target, names, kind, registered=target in components())

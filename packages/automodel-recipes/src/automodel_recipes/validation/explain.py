"""What a key means: its text, what may stand there, its default, and its value in a configuration."""

from dataclasses import dataclass
from typing import Any

from automodel_core.config import ConfigNode
from automodel_core.config.instantiate import TARGET
from automodel_core.config.kinds import KINDS
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.targets import components
from automodel_recipes.schema import DEFAULT_RECIPE, RECIPES, Section, find_section
from automodel_recipes.validation.annotations import annotation_schema, describe
from automodel_recipes.validation.provenance import constant
from automodel_recipes.validation.sections import taken_signature
from automodel_recipes.validation.signatures import Signature, parameter_docs, signature_of
from automodel_recipes.validation.target import Opaque, check_found_kind, find_target


@dataclass(frozen=True)
class Explanation:
    """Everything known about one key; empty fields are unknown."""

    path: str
    doc: str = ""
    allowed: str = ""
    default: str = ""
    keys: tuple[str, ...] = ()
    value: Any = None
    source: str = ""


def explain(path: str, config: ConfigNode | None = None, *, recipe: str | None = None) -> Explanation:
    """Explain a dotted path.

    Args:
        path: a section (``optimizer``) or a key of one (``optimizer.lr``).
        config: where the value, and the keywords of a ``_target_``, are looked up.
        recipe: the recipe whose sections are meant; the configuration's, or the default one.

    Raises: LookupError: no such section or key; suggests a near name.
    """
    chosen = recipe or (config.get("recipe", DEFAULT_RECIPE) if config is not None else DEFAULT_RECIPE)
    if chosen not in RECIPES:
        raise LookupError(f"no recipe {chosen!r}{did_you_mean(str(chosen), RECIPES)}")
    name, _, key = path.partition(".")
    section = find_section(chosen, name)
    if section is None:
        raise LookupError(f"no section {name!r} in {chosen}{did_you_mean(name, RECIPES[chosen])}")
    found = _explain_key(name, key, section, config) if key else _explain_section(name, section, config)
    if config is None or path not in config:
        return found
    value = config.get(path)
    plain = value.to_dict(raw=True) if isinstance(value, ConfigNode) else value
    return Explanation(path, found.doc, found.allowed, found.default, found.keys, plain, str(config.source(path)))


def _explain_section(name: str, section: Section, config: ConfigNode | None) -> Explanation:
    allowed = describe(dict(section.value)) if section.value is not None else ""
    if section.kind is not None:
        names = ", ".join(_component_names(section.kind))
        allowed = f"_target_: {KINDS[section.kind].what}" + (f" ({names})" if names else "")
    return Explanation(name, section.doc, allowed, keys=tuple(sorted(_keys(name, section, config))))


def _component_names(kind: str) -> list[str]:
    """Short names that may stand in sections of a kind."""
    found = []
    for name in sorted(components()):
        try:
            check_found_kind(name, find_target(name), KINDS[kind])
        except (ValueError, Opaque):
            continue
        found.append(name)
    return found


def _signatures(name: str, section: Section, config: ConfigNode | None) -> list[Signature]:
    signatures = [signature for taken in section.takes if (signature := taken_signature(taken)) is not None]
    target = config.get(f"{name}.{TARGET}") if config is not None else None
    if isinstance(target, str):
        try:
            found = find_target(target)
        except (ValueError, Opaque):
            return signatures
        own = signature_of(found.definition, found.method)
        return [own, *signatures] if own is not None else signatures
    return signatures


def _keys(name: str, section: Section, config: ConfigNode | None) -> set[str]:
    keys = set(section.keys)
    for signature in _signatures(name, section, config):
        keys |= set(signature.parameters) - set(section.runtime)
    return keys


def _explain_key(name: str, key: str, section: Section, config: ConfigNode | None) -> Explanation:
    path = f"{name}.{key}"
    if key in section.keys:
        own = section.keys[key]
        return Explanation(path, own.doc, describe(dict(own.schema)))
    for signature in _signatures(name, section, config):
        parameter = signature.parameters.get(key)
        if parameter is not None and key not in section.runtime:
            allowed = describe(annotation_schema(parameter.annotation))
            default = "none: it is required" if parameter.default is None else str(constant(parameter.default))
            return Explanation(path, parameter_docs(signature).get(key, ""), allowed, default)
    if config is not None and path in config:
        return Explanation(path)
    known = _keys(name, section, config)
    hint = did_you_mean(key, known)
    if config is None and section.kind is not None and "did you mean" not in hint:
        hint = "; keys of a _target_ depend on it: add --config FILE"
    raise LookupError(f"no key {key!r} in `{name}`{hint}")

"""A JSON Schema of a recipe's configuration, for completion and checks in editors."""

import json
from collections.abc import Mapping
from typing import Any

from automodel_core.config.includes import KEY as INCLUDES
from automodel_core.config.instantiate import TARGET
from automodel_core.config.kinds import KINDS
from automodel_core.config.targets import components
from automodel_recipes.schema import RECIPES, Section
from automodel_recipes.validation.annotations import annotation_schema
from automodel_recipes.validation.sections import taken_signature
from automodel_recipes.validation.signatures import Signature, parameter_docs, signature_of
from automodel_recipes.validation.target import Found, Opaque, check_found_kind, find_target

_DEFINITIONS = {
    # An editor sees `${LR,1e-4}` as text, whatever type it has once it is resolved.
    "reference": {"type": "string", "pattern": r"\$\{"},
    "target": {"type": "object", "required": [TARGET], "properties": {TARGET: {"type": "string"}}},
}
_INCLUDES = {
    "description": "Files that this one begins with; what stands here goes over what stands there.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
_REFERENCE = {"$ref": "#/$defs/reference"}
_TARGET_SCHEMA = {"$ref": "#/$defs/target"}
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema(recipe: str) -> dict[str, Any]:
    """The schema of one recipe's YAML."""
    sections = RECIPES[recipe]
    properties = {INCLUDES: _INCLUDES}
    properties |= {name: _section_schema(name, section) for name, section in sections.items()}
    return {
        "$schema": _DRAFT,
        "title": recipe,
        "type": "object",
        "$defs": _DEFINITIONS,
        "properties": properties,
        "patternProperties": {"^validation_dataset_.+": {"$ref": "#/properties/validation_dataset"}},
        "required": [name for name, section in sections.items() if section.required],
        "additionalProperties": False,
    }


def schema_text(recipe: str) -> str:
    """The schema as indented JSON."""
    return json.dumps(recipe_schema(recipe), indent=1) + "\n"


def _section_schema(name: str, section: Section) -> dict[str, Any]:
    if section.value is not None:
        return {"description": section.doc, **_or_reference(section.value)}
    item = _mapping_schema(section)
    if section.is_list:
        return {"description": section.doc, "type": "array", "items": item}
    nullable = item if section.required else {"anyOf": [item, {"type": "null"}]}
    return {"description": section.doc, **nullable}


def _mapping_schema(section: Section) -> dict[str, Any]:
    own = _own_keys_schema(section) if section.keys or section.takes else None
    if section.kind is None:
        return own or {"type": "object"}
    with_target = {"allOf": [_TARGET_SCHEMA, *_per_component(section)]}
    return with_target if own is None or not section.keys else {"anyOf": [with_target, own]}


def _own_keys_schema(section: Section) -> dict[str, Any]:
    properties = {key: {"description": value.doc, **_or_reference(value.schema)} for key, value in section.keys.items()}
    signatures = [taken_signature(taken) for taken in section.takes]
    known = [signature for signature in signatures if signature is not None]
    for signature in known:
        properties = _keyword_properties(signature, section) | properties
    is_open = len(known) < len(section.takes) or any(signature.open for signature in known)
    return {"type": "object", "properties": properties, "additionalProperties": is_open}


def _keyword_properties(signature: Signature, section: Section) -> dict[str, Any]:
    docs = parameter_docs(signature)
    found = {}
    for name, parameter in signature.parameters.items():
        if name not in section.runtime:
            described = {"description": docs[name]} if name in docs else {}
            found[name] = described | _or_reference(annotation_schema(parameter.annotation))
    return found


def _per_component(section: Section) -> list[dict[str, Any]]:
    """One ``if _target_ is X then these keys`` for every short name of the section's kind."""
    rules = []
    extra = [signature for taken in section.takes if (signature := taken_signature(taken)) is not None]
    for name in sorted(components()):
        found = _component(name, section)
        signature = signature_of(found.definition, found.method) if found else None
        if signature is None:
            continue
        properties: dict[str, Any] = {TARGET: {"const": name}}
        for taken in (*extra, signature):
            properties |= _keyword_properties(taken, section)
        supplied = (*section.runtime, *section.offers)
        required = [p.name for p in signature.parameters.values() if p.required and p.name not in supplied]
        rules.append(
            {
                "if": {"properties": {TARGET: {"const": name}}},
                "then": {
                    "properties": properties,
                    "required": required,
                    "additionalProperties": signature.open or len(extra) < len(section.takes),
                },
            }
        )
    return rules


def _component(name: str, section: Section) -> Found | None:
    assert section.kind is not None
    try:
        found = find_target(name)
        check_found_kind(name, found, KINDS[section.kind])
    except (ValueError, Opaque):
        return None
    return found


def _or_reference(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, or a ``${NAME}`` reference, or a nested target where an object is built."""
    if not schema:
        return {}
    return {"anyOf": [dict(schema), _REFERENCE, _TARGET_SCHEMA]}

"""Whether a value of a configuration fits a Python annotation, both as written; and annotations as JSON Schema."""

import ast
from typing import Any

# An annotation becomes a list of alternatives; each is a JSON Schema. An empty alternative accepts anything.
Schema = dict[str, Any]

_SCALARS: dict[str, Schema] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "None": {"type": "null"},
    "Path": {"type": "string"},
    "PathLike": {"type": "string"},
}
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple", "set", "frozenset"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
# Objects that YAML cannot write; beside a scalar in a union they do not widen what may stand in the file.
_OBJECTS = {"Tensor", "dtype", "device", "Module", "PreTrainedTokenizerBase", "DeviceMesh", "ProcessGroup", "Generator"}

_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
_PYTHON: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "null": (type(None),),
}


def annotation_schema(node: ast.expr | None) -> Schema:
    """A JSON Schema of an annotation; ``{}`` when it says nothing about what may be written."""
    if node is None:
        return {}
    alternatives = [schema for schema in _alternatives(node) if schema != {"object": True}]
    if not alternatives or any(not schema for schema in alternatives):
        return {}
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _alternatives(node: ast.expr) -> list[Schema]:
    if isinstance(node, ast.Constant):
        return _of_constant(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    if isinstance(node, ast.Name | ast.Attribute):
        return [_of_name(_last(node))]
    if isinstance(node, ast.Subscript):
        return _of_subscript(_last(node.value), node.slice)
    return [{}]


def _of_constant(value: object) -> list[Schema]:
    if value is None:
        return [{"type": "null"}]
    if isinstance(value, str):  # a quoted annotation
        try:
            return _alternatives(ast.parse(value, mode="eval").body)
        except SyntaxError:
            return [{}]
    return [{}]


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _of_name(name: str) -> Schema:
    if name in _SCALARS:
        return dict(_SCALARS[name])
    if name in _LISTS:
        return {"type": "array"}
    if name in _MAPPINGS:
        return {"type": "object"}
    return {"object": True} if name in _OBJECTS else {}


def _of_subscript(name: str, inner: ast.expr) -> list[Schema]:
    arguments = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return [{"enum": [argument.value for argument in arguments if isinstance(argument, ast.Constant)]}]
    if name == "Optional":
        return [*_alternatives(arguments[0]), {"type": "null"}]
    if name in ("Union", "Annotated", "Final", "ClassVar"):
        chosen = arguments if name == "Union" else arguments[:1]
        return [schema for argument in chosen for schema in _alternatives(argument)]
    if name in ("tuple", "Tuple") and not _ends_in_ellipsis(arguments):
        items = [annotation_schema(argument) for argument in arguments]
        return [{"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}]
    if name in _LISTS:
        items_schema = annotation_schema(arguments[0])
        return [{"type": "array", "items": items_schema} if items_schema else {"type": "array"}]
    if name in _MAPPINGS:
        values = annotation_schema(arguments[1]) if len(arguments) == 2 else {}
        return [{"type": "object", "additionalProperties": values} if values else {"type": "object"}]
    return [{}]


def _ends_in_ellipsis(arguments: list[ast.expr]) -> bool:
    return bool(arguments) and isinstance(arguments[-1], ast.Constant) and arguments[-1].value is Ellipsis


def describe(schema: Schema) -> str:
    """A schema in words: ``a number or null``, ``one of "linear", "cosine"``."""
    if "anyOf" in schema:
        return " or ".join(describe(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    if schema.get("type") == "array" and "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}"
    bounds = [f" {sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return _WORDS.get(schema.get("type", ""), "anything") + " and".join(bounds)


def fits(value: Any, schema: Schema) -> bool:
    """Whether a plain value (scalars, lists, dicts) satisfies one of our schemas."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return isinstance(value, list) and _items_fit(value, schema)
    if kind == "object":
        values = schema.get("additionalProperties", {})
        return isinstance(value, dict) and (not values or all(fits(item, values) for item in value.values()))
    return _scalar_fits(value, kind) and _in_range(value, schema)


def _scalar_fits(value: Any, kind: str | None) -> bool:
    if kind is None:
        return True
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    return isinstance(value, _PYTHON[kind])


def _items_fit(value: list[Any], schema: Schema) -> bool:
    if "prefixItems" in schema:
        parts = schema["prefixItems"]
        return len(value) == len(parts) and all(fits(item, part) for item, part in zip(value, parts, strict=True))
    return all(fits(item, schema.get("items", {})) for item in value)


def _in_range(value: Any, schema: Schema) -> bool:
    return not (
        ("minimum" in schema and value < schema["minimum"])
        or ("maximum" in schema and value > schema["maximum"])
        or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
    )

"""Which keywords a class or function takes, read from its source."""

import ast
from dataclasses import dataclass, replace

from automodel_recipes.validation.source import Definition, Module, find_reference

_MAX_BASES = 8


@dataclass(frozen=True)
class Parameter:
    """One keyword: its annotation as source, and its default as source (None when it is required)."""

    name: str
    annotation: ast.expr | None = None
    default: ast.expr | None = None
    required: bool = False
    doc: str = ""
    """The string below a field; parameters of functions are told of in the docstring."""


@dataclass(frozen=True)
class Signature:
    """The keywords that a call takes."""

    module: Module
    parameters: dict[str, Parameter]
    open: bool = False
    """Whether other keywords are taken as well (``**kwargs``)."""
    doc: str = ""


def signature_of(definition: Definition, method: str | None = None) -> Signature | None:
    """The keywords of a function, a class's constructor or one of its methods; None when source does not tell."""
    if isinstance(definition.node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _of_function(definition.module, definition.node, skip_first=False)
    found = _find_method(definition, method or "__init__")
    if found is not None:
        module, function = found
        static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
        signature = _of_function(module, function, skip_first=not static)
        own_doc = ast.get_docstring(definition.node) or ""
        return signature if method or "Args:" in signature.doc else replace(signature, doc=own_doc)
    return _of_dataclass(definition) if method is None and _is_dataclass(definition) else None


def _of_function(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, *, skip_first: bool) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*defaults, *arguments.defaults], strict=True))[1 if skip_first else 0 :]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    parameters = {
        argument.arg: Parameter(argument.arg, argument.annotation, default, required=default is None)
        for argument, default in pairs
    }
    typed = _typed_keywords(module, arguments.kwarg)
    is_open = arguments.kwarg is not None and typed is None
    return Signature(module, (typed or {}) | parameters, is_open, ast.get_docstring(function) or "")


def _typed_keywords(module: Module, argument: ast.arg | None) -> dict[str, Parameter] | None:
    """The keywords of ``**keys: Unpack[SomeTypedDict]``; None where the annotation names no such class."""
    annotation = argument.annotation if argument is not None else None
    if not isinstance(annotation, ast.Subscript) or not ast.unparse(annotation.value).endswith("Unpack"):
        return None
    found = find_reference(module, annotation.slice)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return None
    fields = [statement for statement in found.node.body if isinstance(statement, ast.AnnAssign)]
    return {
        statement.target.id: Parameter(statement.target.id, statement.annotation)
        for statement in fields
        if isinstance(statement.target, ast.Name)
    }


def _find_method(
    definition: Definition, name: str, depth: int = 0
) -> tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef] | None:
    if not isinstance(definition.node, ast.ClassDef) or depth > _MAX_BASES:
        return None
    for statement in definition.node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
            return definition.module, statement
    if name == "__init__" and _is_dataclass(definition):
        return None
    for base in definition.node.bases:
        found = find_reference(definition.module, base)
        inherited = _find_method(found, name, depth + 1) if found else None
        if inherited is not None:
            return inherited
    return None


def _is_dataclass(definition: Definition) -> bool:
    decorators = definition.node.decorator_list
    return definition.is_class and any("dataclass" in ast.unparse(decorator) for decorator in decorators)


def _of_dataclass(definition: Definition) -> Signature:
    """Fields of a dataclass, bases first; class variables and ``init=False`` fields are left out."""
    assert isinstance(definition.node, ast.ClassDef)
    parameters: dict[str, Parameter] = {}
    for base in definition.node.bases:
        found = find_reference(definition.module, base)
        if found is not None and _is_dataclass(found):
            parameters |= _of_dataclass(found).parameters
    for statement, below in zip(definition.node.body, [*definition.node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        text = ast.unparse(statement)
        if "ClassVar" in text or "init=False" in text:
            continue
        name = statement.target.id
        required = statement.value is None
        parameters[name] = Parameter(name, statement.annotation, statement.value, required, _string(below))
    return Signature(definition.module, parameters, False, ast.get_docstring(definition.node) or "")


def _string(statement: ast.stmt | None) -> str:
    """A statement that is only a string: what stands below a field and says what it means."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return " ".join(value.value.split()) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def parameter_docs(signature: Signature) -> dict[str, str]:
    """First sentences of the ``Args:`` block and of dataclass field strings, by parameter."""
    docs = {name: parameter.doc for name, parameter in signature.parameters.items() if parameter.doc}
    lines = signature.doc.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == "Args:"), None)
    if start is None:
        return docs
    names: list[str] = []
    indent = len(lines[start]) - len(lines[start].lstrip()) + 4
    for line in lines[start + 1 :]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth < indent:
            break
        head, colon, rest = line.strip().partition(":")
        heads = [part.split(" (")[0].strip("`* ") for part in head.split(",")]
        if depth == indent and colon and all(part in signature.parameters for part in heads):
            names = heads
            docs |= dict.fromkeys(names, rest.strip())
        elif line.strip():
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
    return docs

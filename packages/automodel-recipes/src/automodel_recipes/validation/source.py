"""Find where a class or function is defined by reading source files; nothing is imported.

Importing torch takes seconds, and importing what a configuration names runs its code. Here a dotted path is followed
through packages, ``from x import y`` and tables of lazily imported names until the ``class`` or ``def`` is found.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_HOPS = 12  # re-exports of re-exports; beyond this it is a cycle


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What a relative import starts from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Definition:
    """A ``class`` or ``def`` statement and the module that holds it."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def name(self) -> str:
        return f"{self.module.name}.{self.node.name}"

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)


@functools.cache
def _package_root(top: str) -> Path | None:
    """The folder (or single file) of a top-level package. Deeper names would import their parents."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def is_installed(top: str) -> bool:
    """Whether a top-level package can be found."""
    return _package_root(top) is not None


def module_file(name: str) -> Path | None:
    """The source file of a dotted module name, or None when there is none (absent, or compiled)."""
    parts = name.split(".")
    root = _package_root(parts[0])
    if root is None:
        return None
    if root.is_file():
        return root if len(parts) == 1 else None
    folder = root.joinpath(*parts[1:])
    for candidate in (folder / "__init__.py", folder.with_suffix(".py") if len(parts) > 1 else folder):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def read_module(name: str) -> Module | None:
    """Parse a module; None when it has no source here."""
    path = module_file(name)
    if path is None:
        return None
    try:
        return Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    except (SyntaxError, UnicodeDecodeError):
        return None


def split_target(target: str) -> tuple[Module, list[str]] | None:
    """The longest module that a dotted path begins with, and the names that follow it."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        module = read_module(".".join(parts[:length]))
        if module is not None:
            return module, parts[length:]
    return None


@functools.cache
def find_definition(module_name: str, name: str, hops: int = 0) -> Definition | None:
    """The definition that ``name`` in a module leads to; None when source alone does not tell."""
    module = read_module(module_name)
    if module is None or hops > _MAX_HOPS:
        return None
    statement = _statements(module).get(name)
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return Definition(module, statement)
    for next_module, next_name in _leads(module, name, statement):
        found = find_definition(next_module, next_name, hops + 1)
        if found is not None:
            return found
    return None


@functools.cache
def _statements(module: Module) -> dict[str, ast.stmt]:
    """What defines each name at the top level; a later statement wins, bodies of if and try count as top level."""
    found: dict[str, ast.stmt] = {}
    for statement in _flatten(module.tree.body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                found[alias.asname or alias.name] = statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = statement
    return found


def public_names(module: Module) -> list[str]:
    """Names for suggestions: what the module defines, imports or lists for lazy import."""
    names = set(_statements(module))
    for table in _name_tables(module):
        names |= {key.value for key in table.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return sorted(name for name in names if not name.startswith("_"))


def _flatten(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            # Never executed. transformers repeats its whole tree there with stars: minutes of reading.
            yield from _flatten(statement.orelse)
        elif isinstance(statement, ast.If):
            yield from _flatten(statement.body)
            yield from _flatten(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _flatten(statement.body)
            for handler in statement.handlers:
                yield from _flatten(handler.body)
        else:
            yield statement


def _leads(module: Module, name: str, statement: ast.stmt | None) -> Iterator[tuple[str, str]]:
    """Where else the definition of ``name`` may be: ``(module, name)`` pairs."""
    if isinstance(statement, ast.ImportFrom):
        original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        yield import_source(module, statement), original
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name) and statement.value.id != name:
        yield module.name, statement.value.id
    for table in _name_tables(module):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and key.value == name:
                home = str(value.value).partition(":")[0].lstrip(".")
                yield from ((candidate, name) for candidate in (home, f"{module.package}.{home}") if home)
    for other in _flatten(module.tree.body):
        if isinstance(other, ast.ImportFrom) and any(alias.name == "*" for alias in other.names):
            yield import_source(module, other), name


def import_source(module: Module, statement: ast.ImportFrom) -> str:
    """The absolute module name of a ``from X import`` statement."""
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")
    base = base[: len(base) - (statement.level - 1)]
    return ".".join([*base, statement.module] if statement.module else base)


def _name_tables(module: Module) -> Iterator[ast.Dict]:
    """Module-level dictionaries: the tables behind a lazy ``__getattr__``."""
    for statement in module.tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            yield value


def base_names(definition: Definition, depth: int = 0) -> list[str]:
    """``module.Class`` of a class and of every base that source leads to, the class first."""
    if not isinstance(definition.node, ast.ClassDef) or depth > _MAX_HOPS:
        return []
    names = [definition.name]
    for base in definition.node.bases:
        found = find_reference(definition.module, base)
        names += base_names(found, depth + 1) if found else []
    return names


def find_reference(module: Module, node: ast.expr) -> Definition | None:
    """The definition that an expression in a module refers to: ``Base``, ``nn.Module``, ``Generic[T]``."""
    if isinstance(node, ast.Subscript):
        return find_reference(module, node.value)
    if isinstance(node, ast.Name):
        return find_definition(module.name, node.id)
    if not isinstance(node, ast.Attribute):
        return None
    dotted = _expand(module, ast.unparse(node))
    split = split_target(dotted)
    return find_definition(split[0].name, split[1][0]) if split and len(split[1]) == 1 else None


def _expand(module: Module, dotted: str) -> str:
    """``nn.Module`` to ``torch.nn.Module`` by the module's imports."""
    head, _, rest = dotted.partition(".")
    for statement in _flatten(module.tree.body):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.asname == head:
                    return f"{alias.name}.{rest}"
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == head:
                    return f"{import_source(module, statement)}.{alias.name}.{rest}"
    return dotted

"""The configuration reference, from the schema that `validate`, `config explain` and editors read."""

from automodel_recipes.schema import RECIPES
from automodel_recipes.validation.explain import Explanation, explain


def config_page(recipe: str) -> str:
    """Every section of a recipe: what it means, what may stand there, its keys with their defaults."""
    lines = [f"# {recipe}", "", f"The sections of a configuration with `recipe: {recipe}`, by name.", ""]
    for name, section in sorted(RECIPES[recipe].items()):
        found = explain(name, recipe=recipe)
        lines += [f"## {name}", "", found.doc + (" Required." if section.required else ""), ""]
        if found.allowed:
            lines += [f"Allowed: {code(found.allowed)}", ""]
        if found.keys:
            lines += ["| key | allowed | default | meaning |", "|---|---|---|---|"]
            lines += [row(key, explain(f"{name}.{key}", recipe=recipe)) for key in found.keys]
            lines.append("")
    return "\n".join(lines) + "\n"


def row(key: str, found: Explanation) -> str:
    """One key as a table row."""
    return f"| `{key}` | {code(found.allowed)} | {code(found.default)} | {cell(found.doc)} |"


def code(text: str) -> str:
    """Text as code inside a table; empty stays empty."""
    return f"`{cell(text)}`" if text else ""


def cell(text: str) -> str:
    """Text that cannot end a table cell or begin markup."""
    flat = " ".join(text.split()).replace("``", "`")
    return flat.replace("|", "\\|").replace("<", "&lt;") if "`" not in flat else flat.replace("|", "\\|")

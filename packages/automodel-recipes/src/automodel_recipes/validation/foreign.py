"""Which table of sections holds for a recipe, also for one that another package registers; read from source."""

import functools
from importlib.metadata import entry_points

from automodel_recipes.schema import RECIPES, Section, find_section
from automodel_recipes.validation.source import base_names, find_definition

GROUP = "automodel.recipes"


def is_registered(recipe: object) -> bool:
    """Whether an installed package registers a recipe of that name."""
    return any(point.name == recipe for point in entry_points(group=GROUP))


@functools.cache
def table_of(recipe: str) -> str | None:
    """The recipe of ours whose sections hold: itself, or the nearest one that a registered recipe derives from."""
    if recipe in RECIPES:
        return recipe
    ours = {point.value.replace(":", "."): point.name for point in entry_points(group=GROUP) if point.name in RECIPES}
    for point in entry_points(group=GROUP):
        if point.name == recipe:
            definition = find_definition(*point.value.split(":", 1))
            bases = base_names(definition) if definition is not None else []
            return next((ours[base] for base in bases if base in ours), None)
    return None


def section_at(recipe: str, path: str) -> Section | None:
    """The section that a dotted path is, ``optimizer`` or an item such as ``transforms.0``; None below sections."""
    name, _, rest = path.partition(".")
    table = table_of(recipe)
    section = find_section(table, name) if table is not None else None
    return section if section is not None and (not rest or (section.is_list and rest.isdecimal())) else None

"""Decide what source does not tell: import targets, and let classes of settings judge their values."""

import dataclasses
import importlib
import inspect

from automodel_core.config import ConfigError, ConfigNode
from automodel_core.config.instantiate import TARGET, keyword_problems, resolve
from automodel_core.config.tree import Table, find
from automodel_recipes.schema import DEFAULT_RECIPE, RECIPES
from automodel_recipes.validation.foreign import section_at, table_of
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.sections import taken_signature


def construct_settings(config: ConfigNode, report: Report) -> None:
    """Make the settings object of each section that is nothing but one; what its class refuses is a problem there.

    Sections in which a problem was found already are left out.
    """
    recipe = config.get("recipe", DEFAULT_RECIPE)
    wrong = {problem.path.partition(".")[0] for problem in report.problems}
    for name, section in RECIPES.get(table_of(recipe) or "", {}).items():
        keys = config.get(name)
        if not isinstance(keys, ConfigNode) or name in wrong or len(section.takes) != 1 or section.keys:
            continue
        module, _, attribute = section.takes[0].partition(":")
        settings = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(settings) or not dataclasses.is_dataclass(settings) or section.runtime:
            continue
        try:
            settings(**keys.to_dict())
        except ConfigError as error:
            report.problems += error.problems
        except ValueError as error:
            report.add(config.source(name), name, str(error))


def bind_deferred(config: ConfigNode, report: Report) -> None:
    """Import each undecided target and check kind and keywords; decided ones leave ``report.deferred``."""
    for deferred in report.deferred:
        path = deferred.path.removesuffix(f".{TARGET}")
        table = find(config.tree, path)
        assert isinstance(table, Table)
        recipe = config.get("recipe", DEFAULT_RECIPE)
        section = section_at(recipe, path)
        try:
            target = resolve(table, path=path, policy=config.policy)
        except ConfigError as error:
            report.problems += error.problems
            continue
        enclosing = section_at(recipe, path.partition(".")[0])
        offered = (*section.runtime, *section.offers) if section is not None else enclosing.offers if enclosing else ()
        extra = [taken_signature(taken) for taken in section.takes] if section is not None else []
        also = [name for signature in extra if signature is not None for name in signature.parameters]
        report.problems += keyword_problems(target, table, path, offered=offered, also=also)
    report.deferred.clear()

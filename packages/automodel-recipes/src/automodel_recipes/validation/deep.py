"""Bind what source does not explain: import the targets and compare keywords with real signatures."""

from automodel_core.config import ConfigError, ConfigNode
from automodel_core.config.instantiate import TARGET, keyword_problems, resolve
from automodel_core.config.tree import Table, find
from automodel_recipes.schema import DEFAULT_RECIPE
from automodel_recipes.validation.foreign import section_at
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.sections import taken_signature


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
        offered = (*section.runtime, *section.offers) if section is not None else ()
        extra = [taken_signature(taken) for taken in section.takes] if section is not None else []
        also = [name for signature in extra if signature is not None for name in signature.parameters]
        report.problems += keyword_problems(target, table, path, offered=offered, also=also)
    report.deferred.clear()

"""``validate``: all checks in order, and ``check``: the same, raising."""

from automodel_core.config import ConfigError, ConfigNode
from automodel_core.config.suggest import did_you_mean
from automodel_core.config.tree import Leaf, walk
from automodel_recipes.schema import DEFAULT_RECIPE, RECIPES
from automodel_recipes.validation.deep import bind_deferred, construct_settings
from automodel_recipes.validation.files import check_files
from automodel_recipes.validation.foreign import is_registered
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.rules import check_rules
from automodel_recipes.validation.sections import check_foreign_recipe, check_sections


def validate(config: ConfigNode, *, deep: bool = False, nproc_per_node: int = 1, files: bool = True) -> Report:
    """Look for every problem of a configuration.

    Args:
        config: a loaded configuration.
        deep: import the targets that source does not explain, and bind their keywords as well.
        nproc_per_node: data ranks, for the divisibility of batches.
        files: look at the files and directories that it names; they may lie on another machine.

    Returns: problems in file order, and the targets that stay undecided without ``deep``.
    """
    report = Report(config.policy, num_values=sum(isinstance(tree, Leaf) for _, tree in walk(config.tree)))
    recipe = config.get("recipe", DEFAULT_RECIPE)
    if recipe in RECIPES:
        check_sections(config.tree, recipe, report)
    elif is_registered(recipe):
        check_foreign_recipe(config.tree, recipe, report)
    else:
        message = f"unknown recipe {recipe!r}{did_you_mean(str(recipe), RECIPES)}"
        report.add(config.source("recipe"), "recipe", message)
        check_sections(config.tree, DEFAULT_RECIPE, report)
    if files:
        check_files(config, report)
    check_rules(config, report, nproc_per_node=nproc_per_node)
    if deep:
        bind_deferred(config, report)
        construct_settings(config, report)
    report.sort()
    return report


def check(config: ConfigNode, *, deep: bool = False, nproc_per_node: int = 1, files: bool = True) -> Report:
    """Like :func:`validate`, but problems are raised.

    Raises: ConfigError: with all problems.
    """
    report = validate(config, deep=deep, nproc_per_node=nproc_per_node, files=files)
    if report.problems:
        raise ConfigError(report.problems)
    return report

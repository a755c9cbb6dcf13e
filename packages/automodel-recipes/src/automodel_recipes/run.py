"""Run a configuration from start to end, as the command line does."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from automodel_core.config import ConfigNode, Policy
from automodel_recipes.errors import RecipeError
from automodel_recipes.interrupt import catch_stop_signals
from automodel_recipes.launch.local import end_with_launcher
from automodel_recipes.options import TrainOptions
from automodel_recipes.out_of_memory import explain, is_out_of_memory
from automodel_recipes.schema import DEFAULT_RECIPE

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def recipe_class(name: str, policy: Policy | None = None) -> "type[BaseRecipe]":
    """The recipe of that name: from entry-point group ``automodel.recipes``, or a dotted path that ``policy`` allows.

    Raises: RecipeError: no such recipe; lists the known ones.
    """
    known = {point.name: point for point in entry_points(group="automodel.recipes")}
    if name in known:
        return known[name].load()
    module, _, attribute = name.rpartition(".")
    if module and policy is not None and policy.allows(name):
        return getattr(importlib.import_module(module), attribute)
    raise RecipeError(
        f"recipe {name!r} is not known; known recipes: {', '.join(sorted(known))}. "
        "A class of your own needs --allow-target."
    )


@contextmanager
def _progress_shown(recipe: "BaseRecipe") -> Iterator[None]:
    """Show how far tokenising, loading and saving are, on the console that the recipe opens when it is set up."""
    from automodel_ckpt.progress import watch_progress as watch_checkpoints
    from automodel_data.progress import watch_progress as watch_data

    displays: list[Callable[[str, int, int], None]] = []

    def show(what: str, done: int, total: int) -> None:
        if not displays and hasattr(recipe, "console"):
            displays.append(recipe.console.progress())
        for display in displays:
            display(what, done, total)

    with watch_data(show), watch_checkpoints(show):
        yield


def configured_recipe(config: ConfigNode) -> "type[BaseRecipe]":
    """The recipe that a configuration names, or the default one. Raises: as `recipe_class`."""
    return recipe_class(config.get("recipe", DEFAULT_RECIPE), config.policy)


def run(config: ConfigNode, options: TrainOptions | None = None) -> int:
    """Set up and train; 0 when the run came to its end.

    Stop signals end the run after the current step (checkpoint first); what goes wrong is raised with an
    ``exit_code`` attribute, never turned into ``sys.exit``.
    """
    recipe = configured_recipe(config)(config, options)
    with catch_stop_signals(recipe.stop), _progress_shown(recipe):
        end_with_launcher()
        try:
            recipe.setup()
            recipe.train()
        except Exception as error:
            if is_out_of_memory(error):
                raise explain(recipe, error) from error
            raise
        finally:
            recipe.close()
    return 0

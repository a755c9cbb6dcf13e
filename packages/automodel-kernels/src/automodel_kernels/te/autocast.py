"""``te_autocast``: low-precision compute inside a ``with`` block, whatever the release calls it."""

import importlib
from contextlib import AbstractContextManager
from typing import Any

import torch.distributed as dist

from automodel_kernels.te.availability import require_te, te_version
from automodel_kernels.te.surface import RECIPES, surface


def te_autocast(
    recipe: str = "current",
    *,
    enabled: bool = True,
    amax_group: dist.ProcessGroup | None = None,
    **recipe_options: Any,
) -> AbstractContextManager[None]:
    """Compute Transformer Engine layers in FP8 or FP4 inside the block.

    Args:
        recipe: ``current``, ``delayed`` or ``block`` (Hopper and newer), ``mxfp8`` or ``nvfp4`` (Blackwell).
        amax_group: ranks that share amax statistics, for ``delayed``.
        recipe_options: fields of the recipe's class.

    Raises: TEUnavailableError: with the reason. ValueError: an unknown recipe, or one that this release lacks.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r}: it must be one of {', '.join(sorted(RECIPES))}.")
    te = require_te()
    names = surface()
    recipes = importlib.import_module("transformer_engine.common.recipe")
    cls = getattr(recipes, RECIPES[recipe], None)
    if cls is None:
        raise ValueError(f"recipe={recipe!r}: Transformer Engine {te_version()} has no {RECIPES[recipe]}. Upgrade it.")
    kwargs = {"enabled": enabled, names.recipe: cls(**recipe_options), names.group: amax_group}
    return getattr(te, names.autocast)(**kwargs)

"""Processes, device and the parallel layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from automodel_core.config import ConfigNode
from automodel_parallel import init_distributed
from automodel_recipes.build.call import plain
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.validation.layout_rules import plan_is_allowed


def build_dist_info(config: ConfigNode) -> Any:
    """Join the process group that the environment describes; a single process needs none."""
    keys = plain(config.get("dist_env"))
    return init_distributed(device=config.get("device", "auto"), **keys)


def build_parallel(config: ConfigNode, dist_info: Any) -> Any:
    """The parallel context of the ``distributed`` section; by default data-parallel over all processes.

    The ``compile`` section becomes the manager's setting of that name.
    """
    plan = config.get("distributed.tp_plan")
    if isinstance(plan, str) and not plan_is_allowed(config, plan):
        raise UnusableInputError(f"distributed.tp_plan {plan!r} imports code; allow it with --allow-target.")
    with usable_layout():
        return _manager(config, dist_info.world_size).setup(dist_info)


@contextmanager
def usable_layout() -> Iterator[None]:
    """What parallelism refuses is a mistake in the configuration."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UnusableInputError(f"distributed: {error}") from error


def _manager(config: ConfigNode, world_size: int) -> Any:
    from automodel_parallel import build_manager

    section = config.get("distributed")
    compiler = _compiler(config)
    if section is not None and "_target_" in section:
        return section.instantiate(**compiler)
    keys = plain(section) | compiler
    strategy = keys.pop("strategy", None) or ("ddp" if world_size > 1 else "none")
    return build_manager("none" if strategy == "ddp" and world_size == 1 else strategy, **keys)


def _compiler(config: ConfigNode) -> dict[str, Any]:
    section = config.get("compile")
    if section is None:
        return {}
    from automodel_parallel.compile import CompileConfig

    compiler = CompileConfig(**plain(section))
    return {"compile": compiler} if compiler.enabled else {}

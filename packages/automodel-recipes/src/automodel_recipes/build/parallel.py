"""Processes, device and the parallel layout."""

from typing import Any

from automodel_core.config import ConfigNode
from automodel_parallel import init_distributed
from automodel_recipes.build.call import plain


def build_dist_info(config: ConfigNode) -> Any:
    """Join the process group that the environment describes; a single process needs none."""
    keys = plain(config.get("dist_env"))
    return init_distributed(device=config.get("device", "auto"), **keys)


def build_parallel(config: ConfigNode, dist_info: Any) -> Any:
    """The parallel context of the ``distributed`` section; by default data-parallel over all processes.

    The ``compile`` section becomes the manager's setting of that name.
    """
    from automodel_parallel import build_manager

    section = config.get("distributed")
    compiler = _compiler(config)
    if section is not None and "_target_" in section:
        manager = section.instantiate(**compiler)
    else:
        keys = plain(section) | compiler
        default = "ddp" if dist_info.world_size > 1 else "none"
        strategy = keys.pop("strategy", None) or default
        manager = build_manager("none" if strategy == "ddp" and dist_info.world_size == 1 else strategy, **keys)
    return manager.setup(dist_info)


def _compiler(config: ConfigNode) -> dict[str, Any]:
    section = config.get("compile")
    if section is None:
        return {}
    from automodel_parallel.compile import CompileConfig

    compiler = CompileConfig(**plain(section))
    return {"compile": compiler} if compiler.enabled else {}

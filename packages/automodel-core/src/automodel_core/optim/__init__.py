"""Parameter groups, optimizers and the schedule of learning rate and weight decay."""

from importlib import import_module
from typing import Any

_HOMES = {
    "OptimizerParamScheduler": "schedule",
    "build_optimizer": "factory",
    "build_param_groups": "param_groups",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

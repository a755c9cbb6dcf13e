"""The short form of a strategy in YAML: ``distributed: {strategy: fsdp2, dp_replicate_size: 2}``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from automodel_parallel.ddp import DDPManager
from automodel_parallel.fsdp2 import FSDP2Manager
from automodel_parallel.megatron_fsdp import MegatronFSDPManager
from automodel_parallel.single import SingleProcessManager

_MANAGERS: dict[str, type] = {
    "ddp": DDPManager,
    "fsdp2": FSDP2Manager,
    "megatron_fsdp": MegatronFSDPManager,
    "none": SingleProcessManager,
}


def build_manager(strategy: str | None, **settings: Any) -> Any:
    """The manager of a strategy, from the keys of a YAML section.

    Args:
        strategy: ``ddp``, ``fsdp2``, ``megatron_fsdp`` or ``none`` (also None).
        settings: the manager's fields. A size of an axis that the strategy lacks may be there as 1 or none.

    Raises: ValueError: an unknown strategy, a key that the strategy does not know, or an axis that it does not have.
    """
    name = "none" if strategy is None else str(strategy).lower()
    if name not in _MANAGERS:
        raise ValueError(
            f"strategy {strategy!r}: it must be one of {', '.join(sorted(_MANAGERS))}. Change distributed.strategy."
        )
    manager = _MANAGERS[name]
    allowed = sorted(field.name for field in fields(manager)) if hasattr(manager, "__dataclass_fields__") else []
    used = {}
    for key, value in settings.items():
        if key in allowed:
            used[key] = value
        elif key.endswith("_size") and value in (1, None, "none"):
            continue
        else:
            keys = ", ".join(allowed) or "no settings"
            raise ValueError(
                f"strategy {name} has no setting {key!r}: allowed are {keys}. Remove it or change strategy."
            )
    return manager(**used)

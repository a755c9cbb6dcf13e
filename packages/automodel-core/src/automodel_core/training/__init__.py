"""Parts of a training loop: steps, random state, timers, noise, averages and watch-dogs."""

from importlib import import_module
from typing import Any

_HOMES = {
    "EMA": "ema",
    "LossScaler": "loss_scaling",
    "SpikeDetector": "watchdog",
    "StatefulRNG": "rng",
    "StepGuard": "watchdog",
    "StepScheduler": "step_scheduler",
    "Timers": "timers",
    "neftune": "embedding_noise",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""What a run does to its steps beside the optimizer: noise, precision, watch-dog, averages."""

from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_core.training import EMA, LossScaler, neftune
from automodel_recipes.build.call import plain
from automodel_recipes.watchdog import Watchdog


def build_neftune(config: ConfigNode, model: Any, *, seed: int) -> Any:
    """NEFTune's noise on the input embeddings of a parallelised model, or None.

    Args:
        config: the run's configuration.
        model: without data-parallel wrappers; on a pipeline stage without embeddings there is no noise.
        seed: equal on ranks that read the same rows.
    """
    section = config.get("neftune")
    if section is None or model.get_input_embeddings() is None:
        return None
    return neftune(model, **plain(section), seed=seed)


def apply_mixed_precision(config: ConfigNode, model: Any) -> None:
    """Half-precision compute on float32 weights, if the configuration asks for it."""
    section = config.get("mixed_precision")
    if section is not None:
        from automodel_core.models import autocast_forward

        autocast_forward(model, section.get("dtype", "bfloat16"))


def build_loss_scaler(config: ConfigNode) -> LossScaler | None:
    """What float16 needs so that small gradients survive; bfloat16 has float32's range."""
    keys = plain(config.get("mixed_precision"))
    if keys.pop("dtype", "bfloat16") == "float16":
        return LossScaler(**keys)
    if keys:
        raise ValueError(
            f"mixed_precision.{next(iter(keys))} scales float16 losses, and dtype is bfloat16, which needs none. "
            "Remove it, or set dtype: float16."
        )
    return None


def build_watchdog(config: ConfigNode) -> Watchdog:
    """The watch-dog of the ``watchdog`` section; every run has one."""
    return Watchdog(**plain(config.get("watchdog")))


def build_ema(config: ConfigNode, model: torch.nn.Module) -> EMA | None:
    """Averages of the trainable weights, or None."""
    section = config.get("ema")
    return None if section is None else EMA(model, **plain(section))

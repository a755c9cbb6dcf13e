"""The optional trackers of a run: Weights & Biases, TensorBoard, MLflow. One metric has one name in all of them."""

import logging
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from automodel_recipes.errors import RecipeError
from automodel_recipes.validation.watch_rules import TRACKERS, wants_tracker

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode

logger = logging.getLogger(__name__)

_NOT_METRICS = ("step", "time", "epoch")


class Tracker(Protocol):
    """What a tracker has to do; it is built only on rank 0."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values by their full names, such as ``train/loss``."""

    def close(self, exit_code: int) -> None:
        """Flush and end the tracker's run as finished or failed."""


class MissingExtraError(RecipeError):
    """A section names a tracker whose package is not installed."""

    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the {name} section needs {name}, which is not installed. Run pip install "
            f"'automodel-recipes[{name}]', or remove the section."
        )


def require_trackers(config: "ConfigNode") -> None:
    """Look before anything heavy is loaded.

    Raises: MissingExtraError: a section names a tracker whose package is not installed.
    """
    for name in TRACKERS:
        if wants_tracker(config, name) and find_spec(name) is None:
            raise MissingExtraError(name)


class Trackers:
    """Hands each row to every tracker; one that fails is left out from then on, and the run goes on."""

    def __init__(self, trackers: dict[str, Tracker] | None = None) -> None:
        self._trackers = trackers or {}

    @classmethod
    def from_config(cls, config: "ConfigNode", run: Path, *, say: Callable[[str, str], None]) -> "Trackers":
        """The trackers whose sections the configuration has.

        Args:
            config: the whole configuration; the trackers get it with secrets masked.
            run: the run's directory, where local files and the ids of tracker runs go.
            say: prints a labelled line.
        """
        opened: dict[str, Tracker] = {}
        if wants_tracker(config, "wandb"):
            from automodel_recipes.loggers.wandb import open_wandb

            opened["wandb"] = open_wandb(config, run, say=say)
        if config.get("tensorboard") is not None:
            from automodel_recipes.loggers.tensorboard import open_tensorboard

            opened["tensorboard"] = open_tensorboard(config, run, say=say)
        if config.get("mlflow") is not None:
            from automodel_recipes.loggers.mlflow import open_mlflow

            opened["mlflow"] = open_mlflow(config, run, say=say)
        return cls(opened)

    def log(self, prefix: str, row: dict[str, Any]) -> None:
        """Send the numbers of a row, as ``prefix/key``."""
        values = metric_values(prefix, row)
        for name, tracker in list(self._trackers.items()):
            if not values:
                continue
            try:
                tracker.log(int(row["step"]), values)
            except Exception as error:  # noqa: BLE001 - a tracker's server must never end a run
                self._drop(name, error)

    def close(self, *, exit_code: int) -> None:
        """End every tracker's run."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.close(exit_code)
            except Exception as error:  # noqa: BLE001 - the same
                self._drop(name, error)
        self._trackers = {}

    def _drop(self, name: str, error: Exception) -> None:
        del self._trackers[name]
        logger.warning(
            "%s failed and gets no more metrics (%s: %s); metrics.jsonl has all of them.",
            name,
            type(error).__name__,
            error,
        )


def metric_values(prefix: str, row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row under their full names."""
    return {
        f"{prefix}/{key}": float(value)
        for key, value in row.items()
        if key not in _NOT_METRICS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def section_keys(config: "ConfigNode", name: str) -> dict[str, Any]:
    """The keys of a tracker's section, without those that are for us."""
    keys = config.get(name).to_dict() if config.get(name) is not None else {}
    keys.pop("enabled", None)
    return keys

"""What watches a run needs: packages of trackers, validation sets to follow and to answer."""

from importlib.util import find_spec

from automodel_core.config import ConfigNode
from automodel_recipes.early_stopping import EarlyStopping
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.validation.report import Report

TRACKERS = ("wandb", "tensorboard", "mlflow")


def trackers_are_there(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """A tracker's section needs its package."""
    for name in TRACKERS:
        if wants_tracker(config, name) and find_spec(name) is None:
            message = f"needs {name}, which is not installed; pip install 'automodel-recipes[{name}]', or remove it"
            report.add(config.source(name), name, message)


def wants_tracker(config: ConfigNode, name: str) -> bool:
    """Whether a configuration has the section and does not switch it off."""
    return config.get(name) is not None and bool(config.get(f"{name}.enabled", True))


def metric_is_measured(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Early stopping follows a metric of a set that is measured, often enough to tell."""
    section = config.get("early_stopping")
    if not isinstance(section, ConfigNode):
        return
    try:
        metric = EarlyStopping(**section.to_dict()).metric
    except (UnusableInputError, TypeError) as error:  # a wrong keyword is reported by the schema
        if isinstance(error, UnusableInputError):
            report.add(config.source("early_stopping"), "early_stopping", str(error))
        return
    sets = [key for key in config if key.startswith("validation_dataset")]
    known = [f"val{key.removeprefix('validation_dataset')}" for key in sets]
    if metric.partition("/")[0] not in known:
        there = f"there are {', '.join(known)}" if known else "there is none"
        message = f"follows {metric!r}, and no validation set gives it: {there}; add one, or name another metric"
        report.add(config.source("early_stopping"), "early_stopping", message)
    elif config.get("step_scheduler.val_every_steps") is None:
        message = "needs step_scheduler.val_every_steps: without it nothing is measured before the end"
        report.add(config.source("early_stopping"), "early_stopping", message)


def samples_have_rows(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Samples at every validation are answers to rows of ``validation_dataset``."""
    path = "evaluation.num_step_samples"
    if config.get(path) and config.get("validation_dataset") is None:
        report.add(config.source(path), path, "needs a `validation_dataset:` to answer; add one, or remove it")

"""Fine-tune any Hugging Face LLM or VLM from one YAML file, from a laptop core to a cluster."""

import importlib
from typing import Any

from automodel_recipes.__about__ import __version__

_HOMES = {
    "BaseRecipe": "automodel_recipes.base",
    "KnowledgeDistillationRecipe": "automodel_recipes.llm.kd",
    "LLMFinetuneRecipe": "automodel_recipes.llm.finetune",
    "SequenceClassificationRecipe": "automodel_recipes.llm.seq_cls",
    "SlurmConfig": "automodel_recipes.launch.slurm",
    "TrainOptions": "automodel_recipes.options",
    "VLMFinetuneRecipe": "automodel_recipes.vlm.finetune",
    "VLMKnowledgeDistillationRecipe": "automodel_recipes.vlm.kd",
    "load_config": "automodel_core.config",
    "setup_logging": "automodel_recipes.loggers.logging_setup",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line must not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

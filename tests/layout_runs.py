"""Recipes run from a configuration in a group of ranks, and what they leave behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MLP_PLAN = {
    "model.layers.*.mlp.gate_proj": "colwise",
    "model.layers.*.mlp.up_proj": "colwise",
    "model.layers.*.mlp.down_proj": "rowwise",
}
"""A tensor-parallel plan of one's own, by mapping or by import path."""


@dataclass
class LayoutRun:
    """One run of a recipe: its configuration, and how it goes on from another."""

    name: str
    config: dict[str, Any]
    resume: str = "never"
    max_steps: int | None = None
    world_size: int = 1


@dataclass
class Left:
    """What rank 0 found in the run's directory, by kind of row."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def of(self, kind: str, key: str) -> list[Any]:
        return [row[key] for row in self.rows if row["kind"] == kind and key in row]


def train(run: LayoutRun, info: Any) -> Left:
    """``setup``, ``train`` and ``close`` of the configured recipe, in the process group that is there."""
    from automodel_core.config import config_from_dict
    from automodel_recipes import TrainOptions
    from automodel_recipes.loggers.jsonl import read_jsonl
    from automodel_recipes.run import recipe_class

    options = TrainOptions(quiet=True, resume=run.resume, max_steps=run.max_steps)
    recipe = recipe_class(run.config["recipe"])(config_from_dict(run.config, allow_targets=("layout_runs",)), options)
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    return Left(read_jsonl(recipe.run_dir.metrics), [str(report) for report in recipe.built.reports])

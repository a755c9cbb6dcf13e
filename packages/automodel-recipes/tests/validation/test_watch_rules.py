"""Sections that watch a run are told what they lack before anything is loaded."""

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.rules import check_rules

SET = {"_target_": "mock"}


def problems(**sections):
    config = config_from_dict(sections)
    report = Report(config.policy)
    check_rules(config, report)
    return [f"{problem.path}: {problem.message}" for problem in report.problems]


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_tracker_needs_its_package(name, monkeypatch):
    monkeypatch.setattr("automodel_recipes.validation.watch_rules.find_spec", lambda package: None)
    (told,) = problems(**{name: {"x": 1}})
    assert told.startswith(f"{name}: needs {name}, which is not installed; pip install 'automodel-recipes[{name}]'")
    assert problems(**{name: {"enabled": False}}) == []


def test_early_stopping_follows_a_set_that_is_measured_often_enough():
    steps = {"val_every_steps": 5}
    assert problems(early_stopping={}, validation_dataset=SET, step_scheduler=steps) == []
    named = {"early_stopping": {"metric": "val_math/loss"}, "validation_dataset_math": SET}
    assert problems(**named, step_scheduler=steps, validation_dataloader={"batch_size": 1}) == []
    (told,) = problems(early_stopping={}, validation_dataset_math=SET, step_scheduler=steps)
    assert "follows 'val/loss', and no validation set gives it: there are val_math; add one" in told
    (told,) = problems(early_stopping={}, validation_dataset=SET)
    assert "needs step_scheduler.val_every_steps" in told
    (told,) = problems(early_stopping={"patience": 0}, validation_dataset=SET, step_scheduler=steps)
    assert "patience must be >= 1" in told


def test_samples_need_rows():
    (told,) = problems(evaluation={"num_step_samples": 2}, validation_dataset_math=SET)
    assert told == "evaluation.num_step_samples: needs a `validation_dataset:` to answer; add one, or remove it"
    assert problems(evaluation={"num_step_samples": 2}, validation_dataset=SET) == []

"""Distillation and sequence classification run from YAML on tiny models, and learn."""

import json

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.loggers.jsonl import read_jsonl
from automodel_recipes.run import recipe_class


def _train(config, out):
    config["checkpoint"] = {"enabled": False, "checkpoint_dir": str(out)}
    recipe = recipe_class(config["recipe"])(config_from_dict(config), TrainOptions(quiet=True))
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    return recipe, read_jsonl(recipe.run_dir.metrics)


@pytest.fixture
def trained_teacher(tiny_config, tmp_path):
    tiny_config["step_scheduler"].update(num_epochs=6)
    _train({**tiny_config, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-2}}, tmp_path / "teacher")
    return tmp_path / "teacher" / "final"


def test_a_student_moves_towards_its_teacher(tiny_config, trained_teacher, tmp_path):
    tiny_config.update(
        recipe="KnowledgeDistillationRecipe",
        teacher_model={**tiny_config["model"], "pretrained_model_name_or_path": str(trained_teacher)},
        loss_fn={"_target_": "kd_loss", "kd_ratio": 1.0, "temperature": 2.0},
        validation_dataset=dict(tiny_config["dataset"]),
        optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2},
    )
    recipe, rows = _train(tiny_config, tmp_path / "student")
    distance = [row["loss"] for row in rows if row["kind"] == "val"]
    assert distance[-1] < 0.25 * distance[0]
    assert not any("perplexity" in row for row in rows)  # the loss is no cross-entropy
    assert all(not parameter.requires_grad for parameter in recipe.teacher.parameters())


def test_a_teacher_is_at_distance_zero_from_itself(tiny_config, tiny_model, tmp_path):
    tiny_config.update(
        recipe="KnowledgeDistillationRecipe",
        teacher_model=dict(tiny_config["model"]),
        loss_fn={"_target_": "kd_loss", "kd_ratio": 1.0},
    )
    tiny_config["step_scheduler"]["max_steps"] = 1
    _, rows = _train(tiny_config, tmp_path / "self")
    assert next(row["loss"] for row in rows if row["kind"] == "train") == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def sentiment(tmp_path):
    """Rows whose class is the letter that occurs more often."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": ("ab" * (i % 4) + letter * 6), "label": letter} for i in range(16) for letter in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_classifier_learns_from_yaml(tiny_config, sentiment, tmp_path):
    tiny_config.update(
        recipe="SequenceClassificationRecipe",
        model={
            **tiny_config["model"],
            "_target_": "automodel_core.NeMoAutoModelForSequenceClassification.from_pretrained",
            "num_labels": 2,
        },
        dataset={"_target_": "classification", "path_or_dataset_id": str(sentiment), "label_names": ["a", "b"]},
        optimizer={"_target_": "torch.optim.AdamW", "lr": 5e-3},
    )
    tiny_config["step_scheduler"].update(num_epochs=8, local_batch_size=4)
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    _, rows = _train(tiny_config, tmp_path / "classifier")
    accuracy = [row["accuracy"] for row in rows if row["kind"] == "val"]
    assert accuracy[0] < 0.8
    assert accuracy[-1] == 1.0

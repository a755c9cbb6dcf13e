"""``monitoring.phase_times`` says where a run's time goes, on the slowest rank, and changes no number."""

import json
import time

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.loggers.jsonl import read_jsonl
from layout_runs import LayoutRun, train
from rank_group import run_in_group

STEP = {"data_s", "forward_backward_s", "optimizer_s"}
SLEEP_S = 0.03


class Slow(LLMFinetuneRecipe):
    """Sleeps in each forward pass of training and validation."""

    def forward_loss(self, batch, num_targets):
        time.sleep(SLEEP_S)
        return super().forward_loss(batch, num_targets)


def run(config, **monitoring):
    recipe = Slow(config_from_dict({**config, "monitoring": monitoring}), TrainOptions(quiet=True))
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    rows = [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train"]
    return rows, json.loads((recipe.run_dir.path / "run.json").read_text())["summary"]


@pytest.fixture
def config(tiny_config, tmp_path):
    tiny_config["step_scheduler"] |= {"local_batch_size": 4, "val_every_steps": 2, "ckpt_every_steps": 3}
    tiny_config["validation_dataset"] = {**tiny_config["dataset"], "limit_dataset_samples": 4}
    tiny_config["checkpoint"] = {"enabled": True, "read_back": False, "checkpoint_dir": str(tmp_path / "run")}
    return tiny_config


def test_each_phase_gets_its_time(config):
    rows, summary = run(config, phase_times=True)
    assert all(set(row) >= STEP for row in rows)
    for row in rows:
        assert row["forward_backward_s"] >= SLEEP_S
        assert sum(row[key] for key in STEP) <= row["step_time_s"] + 0.005
    # A row tells of what followed the step before it.
    assert [row["step"] for row in rows if row.get("eval_s", 0) >= SLEEP_S] == [1, 3, 5]
    assert [row["step"] for row in rows if row.get("checkpoint_s", 0) > 0] == [4]
    totals = summary["phase_seconds"]
    assert totals["data"] + totals["optimizer"] < totals["forward_backward"]
    assert totals["eval"] >= 4 * SLEEP_S  # at the start, behind steps 2 and 4, and at the end
    assert totals["forward_backward"] == pytest.approx(sum(row["forward_backward_s"] for row in rows), abs=0.01)
    assert totals["checkpoint"] > sum(row.get("checkpoint_s", 0) for row in rows)


@pytest.mark.more
def test_rows_say_nothing_of_phases_unless_asked_to_and_train_the_same(config, tmp_path):
    timed, _ = run(config, phase_times=True)
    config["checkpoint"]["checkpoint_dir"] = str(tmp_path / "plain")
    plain, summary = run(config)
    assert not any(STEP & set(row) for row in plain)
    assert summary["phase_seconds"] == {}
    assert [row["loss"] for row in plain] == [row["loss"] for row in timed]


@pytest.mark.more
def test_two_ranks_tell_the_slowest(config):
    config |= {"monitoring": {"phase_times": True}, "distributed": {"strategy": "ddp"}}
    [(_, answers)] = run_in_group(2, train, [LayoutRun("ddp", config)])
    assert not isinstance(answers, str), answers
    assert len(answers[0].of("train", "forward_backward_s")) == 6

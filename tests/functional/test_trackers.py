"""One run, every tracker: the same names and numbers in W&B (offline), TensorBoard, MLflow and metrics.jsonl."""

import importlib.util
import json
import logging
import os
import shutil
import struct

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.loggers.trackers import MissingExtraError, Trackers, metric_values, require_trackers

CANARY = "canary-0a1b2c3d4e"


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed (extra of automodel-recipes)")


@pytest.fixture
def train(tiny_config, tmp_path, monkeypatch):
    """Train three steps with a section more; the run's directory and its train rows."""

    def run(resume="never", max_steps=3, **sections):
        monkeypatch.setenv("CANARY_TOKEN", CANARY)
        model = tiny_config["model"]["pretrained_model_name_or_path"]
        tiny_config["tokenizer"] = {"pretrained_model_name_or_path": model, "token": "${CANARY_TOKEN}"}
        tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
        tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), "read_back": False}
        config = config_from_dict({**tiny_config, **sections})
        recipe = LLMFinetuneRecipe(config, TrainOptions(quiet=True, max_steps=max_steps, resume=resume))
        try:
            recipe.setup()
            recipe.train()
        finally:
            recipe.close()
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return tmp_path / "run", [row for row in rows if row["kind"] == "train"]

    return run


def leaks(folder):
    return [p for p in folder.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


@needs("tensorboard")
def test_tensorboard_holds_the_rows_of_metrics_jsonl(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, rows = train(tensorboard={"flush_secs": 5})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for key in ("loss", "grad_norm", "lr", "tokens_per_s", "label_tokens_per_s", "mfu_percent", "data_wait_percent"):
        seen = {event.step: event.value for event in events.Scalars(f"train/{key}")}
        assert seen == pytest.approx({row["step"]: row[key] for row in rows}, rel=1e-6), key
    assert {event.step for event in events.Scalars("val/perplexity")} == {0, 3}
    assert leaks(run) == []


@needs("mlflow")
def test_mlflow_keeps_files_beside_the_run_and_a_resumed_run_goes_on(train):
    from mlflow import MlflowClient

    section = {"experiment_name": "tiny", "run_name": "first", "tags": {"team": "a"}}
    train(max_steps=2, mlflow=section)
    run, rows = train(resume="auto", max_steps=4, mlflow=section)
    client = MlflowClient(tracking_uri=(run / "mlruns").resolve().as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    (tracked,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert {m.step: m.value for m in history} == {row["step"]: row["loss"] for row in rows}
    assert sorted({m.step for m in history}) == [1, 2, 3, 4]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["optimizer.lr"] == "0.1"
    assert tracked.data.params["tokenizer.token"] == "${CANARY_TOKEN}"
    assert tracked.data.tags["team"] == "a"
    assert leaks(run) == []


def wandb_records(data, *, block=32768, header=7):
    """The records of an offline run's file, which is a LevelDB log: crc, length and kind before each fragment."""
    position, parts = header, []
    while position + header <= len(data):
        if block - position % block < header:  # too short for a fragment: filled with zeros
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts.append(data[position + header : position + header + length])
        position += header + length
        if kind in (1, 4):  # whole, or the last fragment
            yield b"".join(parts)
            parts = []


@needs("wandb")
@pytest.mark.more
def test_wandb_without_a_key_runs_offline_and_says_so(train, monkeypatch, tmp_path):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    said = []
    monkeypatch.setattr("automodel_recipes.loggers.console.Console.fact", lambda self, *words: said.append(words))
    run, rows = train(wandb={"project": "tiny", "name": "first", "tags": ["t"]})
    assert ("wandb", "no WANDB_API_KEY: running offline. Upload later with `wandb sync`.") in said
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    logged, config = {}, {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in record.history.item}
        logged.setdefault(items.get("_step"), {}).update(items)
        config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
    assert {step: values["train/loss"] for step, values in logged.items() if "train/loss" in values} == {
        row["step"]: row["loss"] for row in rows
    }
    assert config["optimizer"]["lr"] == 0.1
    assert config["tokenizer"]["token"] == "${CANARY_TOKEN}"
    assert leaks(run) == []


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_loaded(name, monkeypatch):
    monkeypatch.setattr("automodel_recipes.loggers.trackers.find_spec", lambda package: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'automodel-recipes\[{name}\]'"):
        require_trackers(config_from_dict({name: {"mode": "offline"}}))
    require_trackers(config_from_dict({"seed": 1}))


class Broken:
    def __init__(self):
        self.calls = 0

    def log(self, step, values):
        self.calls += 1
        raise ConnectionError("server is gone")

    def close(self, exit_code):
        raise ConnectionError("server is gone")


def test_a_tracker_that_fails_is_dropped_and_the_others_go_on(caplog):
    seen = []

    class Good(Broken):
        def log(self, step, values):
            seen.append((step, values))

    broken = Broken()
    trackers = Trackers({"bad": broken, "good": Good()})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            trackers.log("train", {"step": step, "loss": 0.5, "name": "x", "mfu_percent": None})
        trackers.close(exit_code=0)
    assert broken.calls == 1
    assert seen == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.5})]
    assert "bad failed and gets no more metrics (ConnectionError: server is gone)" in caplog.text


def test_only_finite_numbers_become_metrics():
    row = {"step": 3, "epoch": 0, "loss": float("nan"), "lr": 0.1, "name": "val", "exact": True, "time": 1.0}
    assert metric_values("val", row) == {"val/lr": 0.1}


def test_the_row_says_how_fast_and_how_long(train):
    _, rows = train()
    assert os.environ["CANARY_TOKEN"] == CANARY
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["num_tokens"] / row["step_time_s"], rel=0.05)
        assert row["tokens_per_s"] > row["label_tokens_per_s"] > 0
        assert 0 <= row["data_wait_percent"] <= 100
        assert row["mfu_percent"] > 0
    assert rows[0]["eta_s"] > 0


def test_rows_between_logged_steps_are_counted(train):
    _, every = train()

    shutil.rmtree(_)
    _, rare = train(
        step_scheduler={"global_batch_size": 8, "local_batch_size": 8, "num_epochs": 2, "log_every_steps": 3}
    )
    assert [row["step"] for row in rare] == [3]
    assert rare[0]["num_tokens"] == sum(row["num_tokens"] for row in every)
    assert rare[0]["num_label_tokens"] == sum(row["num_label_tokens"] for row in every)
    assert rare[0]["loss"] == every[-1]["loss"]

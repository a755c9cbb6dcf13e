"""The profiler records the steps that were asked for and nothing else."""

import gzip
import json

import pytest
import torch

from automodel_core.config import config_from_dict
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.profiling import StepProfiler, build_profiler

CPU = torch.device("cpu")


def train(profiler, steps):
    weight = torch.ones(8, 8, requires_grad=True)
    for step in range(1, steps + 1):
        with profiler.step(step):
            (weight @ weight).sum().backward()
    profiler.close()


def test_the_window_is_recorded_and_readable(tmp_path):
    section = {"profiler": {"start_step": 2, "num_steps": 2, "profile_memory": True}}
    train(build_profiler(config_from_dict(section), tmp_path, CPU, rank=0), steps=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steps-2-3-rank-0.trace.json.gz", "steps-2-3-rank-0.txt"]
    with gzip.open(tmp_path / "steps-2-3-rank-0.trace.json.gz") as trace:
        names = [event.get("name") for event in json.load(trace)["traceEvents"]]
    assert {name for name in names if str(name).startswith("step ")} == {"step 2", "step 3"}
    assert names.count("aten::mm") >= 2
    assert "aten::mm" in (tmp_path / "steps-2-3-rank-0.txt").read_text()


def test_a_run_that_ends_early_writes_what_it_has(tmp_path):
    train(StepProfiler(tmp_path, CPU, start_step=2, num_steps=9), steps=3)
    assert (tmp_path / "steps-2-10-rank-0.txt").exists()


@pytest.mark.parametrize("section", [None, {"enabled": False}, {"ranks": [1]}, {"start_step": 9}])
def test_nothing_is_written_otherwise(tmp_path, section):
    train(build_profiler(config_from_dict({"profiler": section}), tmp_path, CPU, rank=0), steps=3)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(UnusableInputError, match=r"memory_snapshot on cpu.*profile_memory"):
        StepProfiler(tmp_path, CPU, memory_snapshot=True)
    with pytest.raises(UnusableInputError, match="start_step=0"):
        StepProfiler(tmp_path, CPU, start_step=0)

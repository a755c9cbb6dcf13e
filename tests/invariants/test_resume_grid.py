"""The whole grid of exact resumption: where a run stops x full or LoRA x accumulation x dataloader workers."""

import copy

import pytest

from resuming import LORA, killed_and_resumed, run, stopped_and_resumed, trace, weights_hash

pytestmark = pytest.mark.more

# Three epochs of three steps, an evaluation after every second step.
STOPS = {
    "step-1": [1],
    "mid-epoch": [5],
    "last-of-epoch": [3],
    "final-epoch": [7],
    "right-after-evaluation": [4],
    "five-times": [1, 3, 4, 6, 8],
}
RUNS = {
    f"{method}, {num_accumulated} accumulated, {workers} workers": (method, num_accumulated, workers)
    for method in ("full", "lora")
    for num_accumulated in (1, 2)
    for workers in (0, 2)
}


@pytest.fixture(scope="module")
def straight():
    """Name of a run -> what it gives when nothing stops it."""
    return {}


@pytest.fixture
def configured(tiny_config, tmp_path):
    """A run's configuration by its name."""

    def make(name):
        method, num_accumulated, workers = RUNS[name]
        config = copy.deepcopy(tiny_config)
        config["step_scheduler"].update(local_batch_size=8 // num_accumulated, num_epochs=3, val_every_steps=2)
        config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
        config["lr_scheduler"] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2}
        config["validation_dataset"] = dict(config["dataset"])
        config["dataloader"] = {"num_workers": workers}
        config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "straight"), "read_back": False}
        if method == "lora":
            config["peft"] = LORA
        return config

    return make


def _expected(straight, configured, name):
    if name not in straight:
        recipe = run(configured(name))
        straight[name] = (trace(recipe), weights_hash(recipe))
    assert sorted(straight[name][0]) == list(range(1, 10))
    return straight[name]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("place", STOPS)
def test_stopped_and_resumed_equals_uninterrupted(straight, configured, tmp_path, place, name):
    expected = _expected(straight, configured, name)
    resumed = stopped_and_resumed(configured(name), tmp_path, STOPS[place])
    assert (trace(resumed), weights_hash(resumed)) == expected


@pytest.mark.parametrize(
    "name, after",
    [
        ("full, 1 accumulated, 0 workers", 4),
        ("lora, 1 accumulated, 0 workers", 2),
        ("full, 2 accumulated, 0 workers", 3),
        ("lora, 1 accumulated, 2 workers", 7),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(straight, configured, tmp_path, name, after):
    """One SIGKILL per axis, at whatever moment after a step is on disk."""
    expected = _expected(straight, configured, name)
    resumed = killed_and_resumed(configured(name), tmp_path, after)
    assert (trace(resumed), weights_hash(resumed)) == expected

"""A run that is stopped and resumed is bit for bit the run that was not."""

import copy
import signal

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.errors import Interrupted, RunDirectoryError
from automodel_recipes.loggers.jsonl import read_jsonl

KEYS = ("loss", "grad_norm", "lr")
LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8, "dropout": 0.1}


class _StopsAfter(LLMFinetuneRecipe):
    """Behaves as if SIGTERM came during step ``stop_after``."""

    stop_after = 0

    def forward_loss(self, batch, num_targets):
        if self.step_scheduler.step >= self.stop_after:
            self.stop.signal_number = signal.SIGTERM
        return super().forward_loss(batch, num_targets)


@pytest.fixture
def resumable(tiny_config, tmp_path):
    tiny_config["step_scheduler"].update(local_batch_size=4, num_epochs=3, val_every_steps=2)
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
    tiny_config["lr_scheduler"] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2}
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "straight")}
    return tiny_config


def _run(config, *, resume="never", stop_after=None):
    kind = LLMFinetuneRecipe if stop_after is None else _StopsAfter
    recipe = kind(config_from_dict(config), TrainOptions(resume=resume, quiet=True))
    if stop_after is not None:
        recipe.stop_after = stop_after
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    return recipe


def _trace(recipe):
    """Step -> every number as hex; a step that ran twice keeps the later one."""
    rows = [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train"]
    return {row["step"]: [float(row[key]).hex() for key in KEYS] for row in rows}


def _final(recipe):
    return {name: tensor.clone() for name, tensor in recipe.unwrapped().state_dict().items()}


def _stopped_and_resumed(config, tmp_path, stops):
    config = copy.deepcopy(config)
    config["checkpoint"]["checkpoint_dir"] = str(tmp_path / "stopped")
    resume = "never"
    for stop in stops:
        with pytest.raises(Interrupted) as caught:
            _run(config, resume=resume, stop_after=stop)
        assert caught.value.exit_code == 128 + signal.SIGTERM
        resume = "auto"
    return _run(config, resume="auto")


@pytest.mark.parametrize(
    "case, stops",
    [
        ("full", [1]),
        ("full", [3]),
        ("full", [8]),
        ("lora", [2, 4]),
        pytest.param("lora", [1, 3, 4, 6, 8], marks=pytest.mark.more),
        pytest.param("workers", [2], marks=pytest.mark.more),
        ("accumulation", [2]),
        ("async", [2]),
        pytest.param("async-lora", [1, 3, 4], marks=pytest.mark.more),
        pytest.param("everything", [2, 4], marks=pytest.mark.more),
    ],
    ids=[
        "step-1",
        "end-of-epoch",
        "final-epoch",
        "lora-mid-epoch-twice",
        "lora-five-times",
        "workers",
        "accumulation-after-evaluation",
        "async",
        "async-lora",
        "everything",
    ],
)
def test_resumed_run_is_bit_identical(resumable, tmp_path, case, stops):
    if "lora" in case or case == "everything":
        resumable["peft"] = LORA
    if case in ("workers", "everything"):
        resumable["dataloader"] = {"num_workers": 2}
    if case in ("accumulation", "everything"):  # stops at step 2, right after an evaluation
        resumable["step_scheduler"].update(local_batch_size=2, val_every_steps=2)
    resumable["checkpoint"]["is_async"] = "async" in case or case == "everything"
    straight = _run(resumable)
    resumed = _stopped_and_resumed(resumable, tmp_path, stops)
    assert _trace(resumed) == _trace(straight)
    expected = _final(straight)
    assert all(tensor.equal(expected[name]) for name, tensor in _final(resumed).items())


@pytest.mark.parametrize("dropped", ["optim", "lr_schedule", "dataloader", "rng"])
def test_dropping_a_state_item_is_seen(resumable, tmp_path, dropped, monkeypatch):
    """Negative control: without any one item of the state, the resumed run must differ."""
    resumable["peft"] = LORA
    straight = _run(resumable)
    from automodel_recipes.checkpointing import RunCheckpointer

    whole = RunCheckpointer._state

    def partial(self):
        state = whole(self)
        if self.r.run_dir.resume_from is not None:
            for section in (state, state["train"], state["rank"]):
                section.pop(dropped, None)
        return state

    monkeypatch.setattr(RunCheckpointer, "_state", partial)
    monkeypatch.setattr("automodel_ckpt.load", _lenient_load)
    resumed = _stopped_and_resumed(resumable, tmp_path, [4])
    assert _trace(resumed) != _trace(straight)


def _lenient_load(path, state, **keys):
    from automodel_ckpt.loading import load

    return load(path, {name: value for name, value in state.items() if value}, **{**keys, "strict": False})


def test_a_directory_with_a_run_is_refused(resumable):
    _run(resumable)
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*--resume auto.*checkpoint_dir"):
        _run(resumable)


def test_two_recipes_in_one_process_are_independent(resumable, tmp_path):
    first = _run(resumable)
    resumable["checkpoint"]["checkpoint_dir"] = str(tmp_path / "second")
    second = _run(resumable)
    assert _trace(first) == _trace(second)
    assert first.evaluate()["val"].loss == second.evaluate()["val"].loss

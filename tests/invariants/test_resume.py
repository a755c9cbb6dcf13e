"""A run that is stopped and resumed is bit for bit the run that was not."""

import contextlib
from pathlib import Path

import pytest

from automodel_ckpt import CheckpointError, StateMismatch
from automodel_recipes.errors import Interrupted, RunDirectoryError
from resuming import LORA, run, stopped_and_resumed, trace, weights_hash


@pytest.fixture
def resumable(tiny_config, tmp_path):
    tiny_config["step_scheduler"].update(local_batch_size=4, num_epochs=3, val_every_steps=2)
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
    tiny_config["lr_scheduler"] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2}
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "straight")}
    return tiny_config


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
    straight = run(resumable)
    resumed = stopped_and_resumed(resumable, tmp_path, stops)
    assert trace(resumed) == trace(straight)
    assert weights_hash(resumed) == weights_hash(straight)


@pytest.mark.parametrize("dropped", ["model", "optim", "lr_schedule", "step_scheduler", "dataloader", "rng"])
def test_dropping_a_state_item_is_seen(resumable, tmp_path, dropped, monkeypatch):
    """Negative control: without any one item of the state, the resumed run differs or is refused."""
    resumable["peft"] = LORA
    straight = run(resumable)
    from automodel_recipes.checkpointing import RunCheckpointer

    whole = RunCheckpointer.state

    def partial(self):
        state = whole(self)
        if self.r.run_dir.resume_from is not None:
            for section in (state, state["train"], state["rank"]):
                section.pop(dropped, None)
        return state

    monkeypatch.setattr(RunCheckpointer, "state", partial)
    monkeypatch.setattr("automodel_ckpt.load", _lenient_load)
    with contextlib.suppress(CheckpointError):
        resumed = stopped_and_resumed(resumable, tmp_path, [4])
        assert trace(resumed) != trace(straight)


def _lenient_load(path, state, **keys):
    from automodel_ckpt.loading import load

    return load(path, {name: value for name, value in state.items() if value}, **{**keys, "strict": False})


def _other_rows(config, tmp_path):
    rows = Path(config["dataset"]["path_or_dataset_id"]).read_text()
    (tmp_path / "other.jsonl").write_text(rows.replace("abc abc abc abc abc", "abc abd abc abc abc"))
    config["dataset"]["path_or_dataset_id"] = str(tmp_path / "other.jsonl")


def _other_base(config, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = config["model"]["pretrained_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.norm.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "base")
    config["model"]["pretrained_model_name_or_path"] = str(tmp_path / "base")


def _other_alpha(config, tmp_path):
    config["peft"] = {**LORA, "alpha": 16}


def _other_rank(config, tmp_path):
    config["peft"] = {**LORA, "dim": 8}


@pytest.mark.parametrize(
    "change, message",
    [
        (_other_rows, "belongs to another run; different are the training rows, or how"),
        (_other_base, "different are the base model's frozen weights"),
        (_other_alpha, r"different are the adapter's settings .*'alpha': 8.*'alpha': 16"),
        (_other_rank, r"lora_A\.weight: shape \[4, 32\] in the checkpoint, \[8, 32\] here"),
    ],
)
def test_checkpoint_of_another_run_is_refused_with_what_differs(resumable, tmp_path, change, message):
    resumable["peft"] = LORA
    with pytest.raises(Interrupted):
        run(resumable, stop_after=2)
    change(resumable, tmp_path)
    with pytest.raises(StateMismatch, match=message) as caught:
        run(resumable, resume="auto")
    assert caught.value.differences


def test_a_directory_with_a_run_is_refused(resumable):
    run(resumable)
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*--resume auto.*checkpoint_dir"):
        run(resumable)


def test_two_recipes_in_one_process_are_independent(resumable, tmp_path):
    first = run(resumable)
    resumable["checkpoint"]["checkpoint_dir"] = str(tmp_path / "second")
    second = run(resumable)
    assert trace(first) == trace(second)
    assert first.evaluate()["val"].loss == second.evaluate()["val"].loss

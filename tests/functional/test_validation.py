"""Validation: numbers against a plain computation, early stopping, the best checkpoint, and what is left alone."""

import json
import math

import pytest
import torch

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.early_stopping import EarlyStopping
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.places import find_place
from automodel_recipes.token_accuracy import CountingLoss


@pytest.fixture
def build(tiny_config, tmp_path):
    def setup(**sections):
        tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
        tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), "read_back": False}
        options = {key: sections.pop(key) for key in ("resume", "max_steps") if key in sections}
        for name, keys in sections.items():
            tiny_config[name] = {**tiny_config.get(name, {}), **keys}
        recipe = LLMFinetuneRecipe(config_from_dict(tiny_config), TrainOptions(quiet=True, **options))
        recipe.setup()
        return recipe

    return setup


def trained(recipe):
    try:
        return recipe.train()
    finally:
        recipe.close()


def rows(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@torch.no_grad()
def by_hand(recipe):
    """Loss sum, right tokens, tokens and bytes of the validation rows, one row at a time."""
    loss, right, tokens, text = 0.0, 0, 0, b""
    for row in recipe.eval_rows:
        logits = recipe.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        labels = torch.tensor(row["labels"])[1:]
        kept = labels != -100
        loss += float(torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum"))
        right += int((logits.argmax(-1)[kept] == labels[kept]).sum())
        tokens += int(kept.sum())
        text += recipe.tokenizer.decode([i for i in row["labels"] if i != -100], skip_special_tokens=True).encode()
    return loss, right, tokens, len(text)


@pytest.mark.parametrize("loss_fn", ["masked_ce", "fused_linear_ce", "chunked_ce"])
def test_metrics_are_those_computed_by_hand(build, loss_fn):
    steps = {"num_epochs": 3}
    recipe = build(loss_fn={"_target_": loss_fn}, validation_dataloader={"batch_size": 4}, step_scheduler=steps)
    plain = recipe.loss_fn
    recipe.train()  # so that some tokens are right
    (metrics,) = recipe.evaluate().values()
    loss, right, tokens, num_bytes = by_hand(recipe)
    recipe.close()
    assert recipe.loss_fn is plain
    assert 0 < right < tokens
    assert (metrics.num_label_tokens, metrics.num_correct, metrics.num_bytes) == (tokens, right, num_bytes)
    extra = metrics.extra()
    assert metrics.loss == pytest.approx(loss / tokens, rel=1e-5)
    assert extra["token_accuracy"] == right / tokens
    assert extra["bits_per_byte"] == pytest.approx(loss / math.log(2) / num_bytes, rel=1e-5)
    assert extra["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-5)


def test_counting_does_not_touch_the_loss_and_ignores_what_is_ignored():
    hidden, weight = torch.randn(2, 3, 4), torch.randn(7, 4)
    best = (hidden @ weight.T).argmax(-1)
    labels = best.clone()
    labels[0, 0], labels[1, 1] = -100, (best[1, 1] + 1) % 7

    def inner(inputs, shift_labels, num, *, weight, bias=None):
        return inputs.sum() * 0 + 3.5

    inner.takes_hidden_states = True
    counted = CountingLoss(inner, torch.device("cpu"))
    assert float(counted(hidden, labels, 1, weight=weight)) == 3.5
    assert int(counted.correct) == 4


def test_a_run_that_stops_improving_ends_with_its_reason_and_keeps_its_best(build, tmp_path):
    # Step 1 helps; a learning rate of 40 from then on cannot.
    recipe = build(
        optimizer={"lr": 0.05},
        lr_scheduler={"lr_decay_style": "constant"},
        step_scheduler={"num_epochs": 50, "val_every_steps": 1, "save_checkpoint_every_epoch": False},
        early_stopping={"patience": 2},
        checkpoint={"max_recent_checkpoints": 1},
    )
    plain = recipe.optimizer.step
    taken = []

    def worse_after_two(*arguments, **keys):
        taken.append(1)
        for group in recipe.optimizer.param_groups:
            group["lr"] = 0.05 if len(taken) <= 2 else 40.0
        return plain(*arguments, **keys)

    recipe.optimizer.step = worse_after_two
    summary = trained(recipe)
    run = tmp_path / "run"
    losses = {row["step"]: row["loss"] for row in rows(run, "val")}
    best_step = min((step for step in losses if step), key=losses.get)
    assert summary.steps == best_step + 2
    assert "val/loss has not improved in 2 validations" in summary.stop_reason
    assert f"was at step {best_step}" in summary.stop_reason
    assert json.loads((run / "run.json").read_text())["end"]["reason"] == summary.stop_reason
    assert rows(run, "early_stop")[0]["reason"] == summary.stop_reason
    assert sorted(int(p.name[5:]) for p in run.glob("step-*")) == [best_step, best_step + 2]
    assert find_place(f"{run}@best").path.endswith(f"step-{best_step:08d}")


def test_the_count_of_bad_validations_survives_a_resume(build):
    steps = {"num_epochs": 50, "val_every_steps": 1}
    stopping = {"metric": "val/token_accuracy", "patience": 4, "min_delta": 1.0}  # the first is the best for ever
    first = trained(build(step_scheduler=steps, early_stopping=stopping, max_steps=3))
    assert first.stop_reason is None
    second = trained(build(step_scheduler=steps, early_stopping=stopping, resume="auto"))
    assert second.steps == 5
    assert "in 4 validations" in second.stop_reason


def test_the_last_checkpoint_knows_how_good_it_is(build, tmp_path):
    trained(build(max_steps=2))
    manifest = json.loads((tmp_path / "run" / "step-00000002" / "MANIFEST.json").read_text())
    val = [row for row in rows(tmp_path / "run", "val") if row["step"] == 2]
    assert len(val) == 1
    metrics = manifest["metrics"] if "metrics" in manifest else manifest["body"]["metrics"]
    assert metrics["val/loss"] == metrics["val"] == val[0]["loss"]
    assert set(metrics) == {"val", "val/loss", "val/perplexity", "val/token_accuracy", "val/bits_per_byte"}


def test_samples_of_every_validation_are_greedy_answers(build, tmp_path):
    sizes = {"num_step_samples": 2, "max_new_tokens": 5}
    recipe = build(evaluation=sizes, step_scheduler={"val_every_steps": 2}, max_steps=4)
    trained(recipe)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(s["step"], s["moment"]) for s in samples] == [(step, "step") for step in (0, 0, 2, 2, 4, 4)]
    for row, sample in zip(recipe.eval_rows[:2], samples[-2:], strict=True):
        ids = [i for i, label in zip(row["input_ids"], row["labels"]) if label == -100]
        for _ in range(5):  # one token at a time, without a cache
            with torch.no_grad():
                ids.append(int(recipe.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == recipe.tokenizer.eos_token_id:
                break
        prompt = sum(label == -100 for label in row["labels"])
        assert sample["generated"] == recipe.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_every_set_is_measured_and_can_be_followed(build, tmp_path, tiny_config):
    half = {**tiny_config["dataset"], "limit_dataset_samples": 5}
    recipe = build(validation_dataset_math=half, early_stopping={"metric": "val_math/loss"}, max_steps=1)
    trained(recipe)
    by_set = {row["name"]: row for row in rows(tmp_path / "run", "val") if row["step"] == 1}
    assert set(by_set) == {"val", "math"}
    assert by_set["math"]["num_label_tokens"] < by_set["val"]["num_label_tokens"]
    assert recipe.early_stopping.best == by_set["math"]["loss"] != by_set["val"]["loss"]


def test_judging_by_numbers():
    up = EarlyStopping(metric="val/token_accuracy", patience=2)
    assert up.mode == "max"
    seen = [up.observe(step, {"val/token_accuracy": value}) for step, value in enumerate([0.5, 0.6, float("nan"), 0.6])]
    assert [s.improved for s in seen] == [True, True, False, False]
    assert seen[3].stop_reason == (
        "val/token_accuracy has not improved in 2 validations; the best, 0.6, was at step 1."
    )
    down = EarlyStopping(min_delta=0.1)
    assert [down.observe(s, {"val/loss": v}).improved for s, v in enumerate([1.0, 0.95, 0.89])] == [True, False, True]


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(UnusableInputError, match=r"'val/los' is not measured. Measured are: val/loss, val/perplexity"):
        EarlyStopping(metric="val/los").observe(1, {"val/loss": 1.0, "val/perplexity": 2.0})
    with pytest.raises(UnusableInputError, match="patience=0"):
        EarlyStopping(patience=0)
    with pytest.raises(UnusableInputError, match="mode='up'"):
        EarlyStopping(mode="up")


@pytest.mark.more
@pytest.mark.parametrize(
    ("layout", "loss_fn"), [({}, "masked_ce"), ({"tp_size": 2}, "masked_ce"), ({"tp_size": 2}, "fused_linear_ce")]
)
def test_two_ranks_measure_what_one_measures(tiny_config, cli, layout, loss_fn):
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    tiny_config["step_scheduler"] |= {"local_batch_size": 4, "num_epochs": 1}
    tiny_config["loss_fn"] = {"_target_": loss_fn}
    one = cli(tiny_config, "one")
    tiny_config["distributed"] = {"strategy": "fsdp2", **layout}
    two = cli(tiny_config, "two", "--nproc-per-node", "2")
    mine, theirs = ([row for row in run.rows if row["kind"] == "val"] for run in (one, two))
    assert len(mine) == len(theirs) == 2
    assert mine[-1]["token_accuracy"] > 0
    for a, b in zip(mine, theirs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        for key in ("num_label_tokens", "token_accuracy"):
            assert b[key] == a[key], key
        assert b["bits_per_byte"] == pytest.approx(a["bits_per_byte"], rel=1e-4)

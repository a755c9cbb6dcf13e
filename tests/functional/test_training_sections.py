"""What a run does to its steps: noise, precision, averages, QAT and the watch-dog, each from its YAML section."""

import json

import pytest
import torch
from safetensors.torch import load_file

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.errors import LossSpikeError, NonFiniteLossError
from automodel_recipes.loggers.jsonl import read_jsonl
from automodel_recipes.run import recipe_class


def start(config, out, **options):
    config = {**config, "checkpoint": {"enabled": False, **config["checkpoint"], "checkpoint_dir": str(out)}}
    recipe = recipe_class(config["recipe"])(config_from_dict(config), TrainOptions(quiet=True, **options))
    recipe.setup()
    return recipe


def train(config, out, **options):
    recipe = start(config, out, **options)
    try:
        recipe.train()
    finally:
        recipe.close()
    return recipe, read_jsonl(recipe.run_dir.metrics)


def losses(rows):
    return [float(row["loss"]) for row in rows if row["kind"] == "train"]


def final(out):
    return load_file(out / "final" / "model.safetensors")


def poison(recipe, sample, value=float("nan")):
    """Multiply the loss of every batch that holds a row of the training data."""
    plain, row = recipe.forward_loss, torch.tensor(recipe.train_loader.dataset[sample]["input_ids"])

    def forward_loss(batch, num_targets):
        loss = plain(batch, num_targets)
        ids = batch["input_ids"]
        here = ids.shape[1] >= len(row) and bool((ids[:, : len(row)] == row).all(dim=1).any())
        return loss * value if here else loss

    recipe.forward_loss = forward_loss


@pytest.fixture
def by_two(tiny_config):
    """Four micro-batches of two rows a step; AdamW, whose moments a bad step must not touch either."""
    tiny_config["step_scheduler"] |= {"global_batch_size": 8, "local_batch_size": 2, "num_epochs": 1}
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-3}
    tiny_config["dataloader"] = {"shuffle": False}
    return tiny_config


def test_a_bad_step_stops_the_run_names_its_rows_and_leaves_the_weights(by_two, tmp_path):
    recipe = start(by_two, tmp_path / "stopped")
    poison(recipe, sample=11)
    before = {}

    def remember(optimizer, grad_norm, plain=recipe.watchdog.take_step):
        before.update({name: p.detach().clone() for name, p in recipe.model.named_parameters()})
        return plain(optimizer, grad_norm)

    recipe.watchdog.take_step = remember
    with pytest.raises(
        NonFiniteLossError, match=r"step 2 was not taken: loss nan, .* Rows whose loss is not finite: 11\."
    ):
        recipe.train()
    recipe.close()
    for name, parameter in recipe.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not (tmp_path / "stopped" / "final").exists()


@pytest.mark.parametrize("fused", [False, True])
def test_skip_trains_on_as_if_the_step_had_not_been(fused, by_two, tmp_path):
    by_two["optimizer"]["fused"] = fused
    by_two["watchdog"] = {"on_non_finite": "skip"}
    by_two["step_scheduler"]["log_every_steps"] = 3
    recipe = start(by_two, tmp_path / "skipped")
    poison(recipe, sample=3)
    recipe.train()
    recipe.close()
    rows = read_jsonl(recipe.run_dir.metrics)
    (incident,) = [row for row in rows if row["kind"] == "nonfinite"]
    assert (incident["step"], incident["sample_ids"], incident["loss"]) == (1, [2, 3], "nan")
    assert recipe.watchdog.state_dict()["num_skipped"] == 1

    # The same run with an optimizer that does nothing in that step.
    by_two["watchdog"] = {}
    other = start(by_two, tmp_path / "without")
    optimizer_step, taken = other.watchdog.take_step, []

    def leave_out_the_first(optimizer, grad_norm):
        taken.append(True)
        return grad_norm.new_zeros(()) if len(taken) == 1 else optimizer_step(optimizer, grad_norm)

    other.watchdog.take_step = leave_out_the_first
    other.train()
    other.close()
    ours, theirs = final(tmp_path / "skipped"), final(tmp_path / "without")
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_many_bad_steps_in_a_row_stop_the_run_even_so(by_two, tmp_path):
    by_two["watchdog"] = {"on_non_finite": "skip", "max_skipped": 2}
    recipe = start(by_two, tmp_path / "bad")
    plain = recipe.forward_loss
    recipe.forward_loss = lambda batch, n: plain(batch, n) * float("inf")
    with pytest.raises(NonFiniteLossError, match="2 steps in a row were skipped"):
        recipe.train()
    recipe.close()
    assert recipe.step_scheduler.step == 2


@pytest.mark.parametrize("on_spike", ["warn", "stop", "ignore"])
def test_a_spike_names_its_rows(on_spike, by_two, tmp_path):
    by_two["watchdog"] = {"on_spike": on_spike, "min_steps": 2, "window": 8, "threshold": 5.0}
    recipe = start(by_two, tmp_path / on_spike)
    poison(recipe, sample=17, value=50.0)
    if on_spike == "stop":
        with pytest.raises(LossSpikeError, match=r"step 3: loss .* against a usual .*\. Rows: 16, 17, 18"):
            recipe.train()
    else:
        recipe.train()
    recipe.close()
    spikes = [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "spike"]
    assert [row["step"] for row in spikes] == ([] if on_spike == "ignore" else [3])


def test_weights_that_are_not_finite_are_not_written(by_two, tmp_path):
    by_two["optimizer"] = {"_target_": "torch.optim.SGD", "lr": 3e38}
    by_two["step_scheduler"]["max_steps"] = 1
    by_two["checkpoint"] = {"enabled": True}
    by_two["clip_grad_norm"] = {"max_norm": None}
    recipe = start(by_two, tmp_path / "overflow")
    plain = recipe.forward_loss
    recipe.forward_loss = lambda batch, n: plain(batch, n) * 1e4
    with pytest.raises(NonFiniteLossError, match="weights on rank 0 are not finite, such as model"):
        recipe.train()
    recipe.close()
    assert not list((tmp_path / "overflow").glob("step-*"))


def test_noise_changes_training_and_not_validation_and_is_resumed(by_two, tmp_path):
    by_two["neftune"] = {"noise_alpha": 5.0}
    by_two["validation_dataset"] = dict(by_two["dataset"])
    by_two["checkpoint"] = {"enabled": True, "read_back": False}
    by_two["step_scheduler"]["ckpt_every_steps"] = 2
    _, noisy = train(by_two, tmp_path / "noisy")
    train(by_two, tmp_path / "halved", max_steps=2)
    _, resumed = train(by_two, tmp_path / "halved", resume="auto")
    assert losses(resumed)[-1] == losses(noisy)[-1]
    del by_two["neftune"]
    _, plain = train(by_two, tmp_path / "plain")
    assert losses(noisy)[0] != losses(plain)[0]
    assert losses(noisy)[0] == pytest.approx(losses(plain)[0], rel=0.2)
    first = [next(row["loss"] for row in rows if row["kind"] == "val") for rows in (noisy, plain)]
    assert first[0] == first[1]


def test_the_average_is_validated_written_and_resumed(by_two, tmp_path):
    by_two["ema"] = {"decay": 0.5}
    by_two["validation_dataset"] = dict(by_two["dataset"])
    by_two["checkpoint"] = {"enabled": True}
    by_two["step_scheduler"]["ckpt_every_steps"] = 2
    seen = []
    recipe = start(by_two, tmp_path / "averaged")
    seen.append({name: p.detach().clone() for name, p in recipe.model.named_parameters()})

    def update(skipped, plain=recipe.ema.update):
        plain(skipped)
        seen.append({name: p.detach().clone() for name, p in recipe.model.named_parameters()})

    recipe.ema.update = update
    recipe.train()
    recipe.close()
    assert len(seen) == 4
    weights = [0.125, 0.125, 0.25, 0.5]
    saved = final(tmp_path / "averaged")
    for name, tensor in saved.items():
        want = sum(w * one[name].double() for w, one in zip(weights, seen, strict=True))
        torch.testing.assert_close(tensor.double(), want, rtol=1e-5, atol=1e-7)
    name = "model.embed_tokens.weight"
    assert torch.equal(dict(recipe.model.named_parameters())[name], seen[-1][name])
    rows = read_jsonl(recipe.run_dir.metrics)
    validated = [row["loss"] for row in rows if row["kind"] == "val"][-1]
    with recipe.ema.applied():
        assert recipe.evaluate()["val"].loss == validated
    assert recipe.evaluate()["val"].loss != validated

    train(by_two, tmp_path / "halved", max_steps=2)
    train(by_two, tmp_path / "halved", resume="auto")
    for name, tensor in final(tmp_path / "halved").items():
        assert torch.equal(tensor, saved[name]), name


def test_float16_scales_its_loss_and_learns_what_float32_learns(by_two, tmp_path):
    by_two["loss_fn"] = {"_target_": "fused_linear_ce"}
    by_two["step_scheduler"]["num_epochs"] = 3
    _, plain = train(by_two, tmp_path / "float32")
    by_two["mixed_precision"] = {"dtype": "float16", "init_scale": 2.0**24, "growth_interval": 4}
    recipe, rows = train(by_two, tmp_path / "float16")
    overflows = [row for row in rows if row["kind"] == "overflow"]
    assert overflows
    assert not [row for row in rows if row["kind"] == "nonfinite"]
    assert recipe.loss_scaler.state_dict()["scale"] < 2.0**24
    weights = final(tmp_path / "float16")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    lag = len(overflows)
    after = losses(rows)[lag:]
    assert after == pytest.approx(losses(plain)[: len(after)], rel=0.1)
    assert losses(rows)[-1] < losses(rows)[0]


def test_bfloat16_computes_low_and_keeps_high(by_two, tmp_path):
    by_two["mixed_precision"] = {"dtype": "bfloat16"}
    recipe = start(by_two, tmp_path / "bfloat16")
    ids = torch.arange(3, 12)[None]
    assert recipe.model(input_ids=ids).logits.dtype == torch.bfloat16
    recipe.train()
    recipe.close()
    assert recipe.loss_scaler is None
    rows = read_jsonl(recipe.run_dir.metrics)
    del by_two["mixed_precision"]
    _, plain = train(by_two, tmp_path / "float32")
    assert losses(rows) != losses(plain)
    assert losses(rows) == pytest.approx(losses(plain), rel=0.02)


def test_qat_trains_with_rounding_and_writes_plain_weights(by_two, tmp_path):
    by_two["qat"] = {"scheme": "int4_weight_only", "group_size": 16, "fake_quant_after_n_steps": 1}
    by_two["checkpoint"] = {"enabled": True}
    _, rows = train(by_two, tmp_path / "rounded")
    del by_two["qat"]
    _, plain = train(by_two, tmp_path / "plain")
    assert losses(rows)[0] == losses(plain)[0]
    assert losses(rows)[1] != losses(plain)[1]
    names = set(final(tmp_path / "plain"))
    assert set(final(tmp_path / "rounded")) == names


def test_qat_under_lora_trains_an_adapter_on_the_rounded_base(by_two, tmp_path):
    by_two["peft"] = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4}
    _, plain = train(by_two, tmp_path / "plain")
    by_two["qat"] = {"group_size": 16}
    recipe, rows = train(by_two, tmp_path / "rounded")
    assert losses(rows)[0] != losses(plain)[0]
    assert losses(rows)[-1] < losses(rows)[0]
    assert (tmp_path / "rounded" / "final" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "rounded" / "final" / "adapter_config.json").read_text())["r"] == 4
    assert recipe.built.qat.layers["model.layers.0.self_attn.q_proj"].lora_A.weight.requires_grad


@pytest.mark.parametrize(
    "section, said",
    [
        ({"neftune": {"noise_alpha": 0}}, "noise_alpha=0"),
        ({"ema": {"decay": 1.5}}, "decay=1.5"),
        ({"qat": {"group_size": 24}}, "group_size=24 on model.layers.0.self_attn.q_proj with 32 inputs.*Choose 32"),
        ({"watchdog": {"on_spike": "shout"}}, "on_spike='shout': choose one of warn, stop, ignore"),
        ({"watchdog": {"max_skipped": 0}}, "max_skipped=0"),
        ({"mixed_precision": {"init_scale": 4.0}}, "dtype is bfloat16, which needs none"),
        ({"mixed_precision": {"dtype": "int8"}}, "dtype='int8': choose bfloat16 or float16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused(section, said, by_two, tmp_path):
    with pytest.raises(ValueError, match=said):
        start({**by_two, **section}, tmp_path / "refused")


def test_half_precision_weights_are_not_computed_in_half_precision_again(by_two, tmp_path):
    by_two["model"] = {**by_two["model"], "dtype": "bfloat16"}
    with pytest.raises(ValueError, match="Load the model with dtype: float32"):
        start({**by_two, "mixed_precision": {"dtype": "bfloat16"}}, tmp_path / "refused")


def test_rounding_in_groups_is_not_cut_over_tensor_ranks(by_two):
    from automodel_recipes.build.model import build_model
    from automodel_recipes.errors import UnusableInputError

    by_two |= {"qat": {"group_size": 16}, "distributed": {"strategy": "fsdp2", "tp_size": 2}}
    with pytest.raises(UnusableInputError, match=r"qat with distributed\.tp_size=2: groups of weights"):
        build_model(config_from_dict(by_two), seed=0)

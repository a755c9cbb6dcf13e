import pytest
import torch

from automodel_core.optim import build_optimizer, build_param_groups
from automodel_core.peft import PeftConfig, apply_lora


def names_by_group(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in groups]


def test_norms_and_biases_do_not_decay(llama):
    groups = build_param_groups(llama, lr=1e-3, weight_decay=0.1)
    decayed, plain = names_by_group(llama, groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all("norm" in name for name in plain)
    assert not any("norm" in name for name in decayed)
    assert len(build_param_groups(llama, lr=1e-3, weight_decay=0.1, decay_norms_and_biases=True)) == 1


def test_overrides_multiply_and_the_last_match_wins(llama):
    overrides = [{"pattern": "model.*", "lr_mult": 0.5}, {"pattern": "*embed_tokens*", "lr_mult": 0.1, "wd_mult": 0.0}]
    groups = build_param_groups(llama, lr=1.0, weight_decay=0.2, param_group_overrides=overrides)
    found = {name: group for group, names in zip(groups, names_by_group(llama, groups), strict=True) for name in names}
    assert found["model.embed_tokens.weight"]["lr"] == 0.1
    assert found["model.embed_tokens.weight"]["weight_decay"] == 0.0
    assert found["model.layers.0.mlp.up_proj.weight"]["lr"] == 0.5
    assert found["lm_head.weight"]["lr"] == 1.0


def test_lora_plus_speeds_up_b(llama):
    apply_lora(llama, PeftConfig(target_modules=["q_proj"]))
    groups = build_param_groups(llama, lr=1e-3, lora_plus_ratio=16)
    for group, names in zip(groups, names_by_group(llama, groups), strict=True):
        assert group["lr"] == pytest.approx(1.6e-2 if "lora_B" in next(iter(names)) else 1e-3)
    assert len(groups) == 2


def test_frozen_parameters_are_left_out(llama):
    apply_lora(llama, PeftConfig(target_modules=["q_proj"]))
    optimizer = build_optimizer(llama, torch.optim.SGD, lr=0.1, momentum=0.9)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_weight_decay_defaults_to_the_optimizers_own(llama):
    assert build_optimizer(llama, torch.optim.AdamW, lr=0.1).param_groups[0]["weight_decay"] == 0.01
    assert build_optimizer(llama, torch.optim.SGD, lr=0.1).param_groups[0]["weight_decay"] == 0.0


def test_low_precision_with_plain_adamw_is_called_out(llama, caplog):
    build_optimizer(llama.to(torch.bfloat16), torch.optim.AdamW, lr=1e-5)
    assert "AdamW on bfloat16 parameters" in caplog.text
    caplog.clear()
    build_optimizer(llama.float(), torch.optim.AdamW, lr=1e-5)
    assert not caplog.text


@pytest.mark.parametrize(
    "keys, error, said",
    [
        ({"param_group_overrides": [{"pattern": "*nope*", "lr_mult": 2}]}, ValueError, r"'\*nope\*' matches none"),
        ({"param_group_overrides": [{"pattern": "*", "lr": 2}]}, ValueError, "an entry has 'pattern'"),
        ({"lora_plus_ratio": 16}, ValueError, "without lora_B"),
        ({"betas": (0.9, 0.9), "bets": 1}, TypeError, "AdamW takes no bets"),
    ],
)
def test_settings_that_act_on_nothing_are_refused(llama, keys, error, said):
    with pytest.raises(error, match=said):
        build_optimizer(llama, torch.optim.AdamW, lr=0.1, **keys)


def test_a_frozen_model_is_refused(llama):
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        build_optimizer(llama.requires_grad_(False), lr=0.1)


def test_only_what_lies_on_cuda_is_fused_by_itself(llama, monkeypatch):
    from automodel_core.optim import factory

    assert not build_optimizer(llama, torch.optim.AdamW).defaults["fused"]
    monkeypatch.setattr(factory, "_can_be_fused", lambda *arguments: True)  # there is no CUDA here
    assert build_optimizer(llama, torch.optim.AdamW).defaults["fused"] is True
    assert not build_optimizer(llama, torch.optim.AdamW, foreach=True).defaults["fused"]
    assert build_optimizer(llama, torch.optim.AdamW, fused=False).defaults["fused"] is False

"""FP8 through torchao: coverage is reported, nothing is converted in silence or left out in silence."""

import pytest
import torch
from torch import nn

from automodel_kernels import FP8Config, apply_fp8

pytest.importorskip("torchao", reason="torchao is not installed")


class Adapted(nn.Linear):
    """A LoRA layer."""


def build(lora=False):
    model = nn.Sequential()
    model.add_module("first", nn.Linear(32, 64, bias=False))
    model.add_module("second", nn.Linear(64, 48, bias=False))
    model.add_module("odd", nn.Linear(48, 30, bias=False))
    model.add_module("lm_head", nn.Linear(30, 16, bias=False))
    if lora:
        second = model.second
        second.__class__ = Adapted
        second.lora_A, second.lora_B = nn.Linear(64, 16, bias=False), nn.Linear(16, 48, bias=False)
        second.scaling, second.dropout = 1.0, 0.0
        second.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_converted_layers_compute_in_fp8_and_train(recipe):
    model = build()
    x = torch.randn(16, 32)
    expected = model.second(model.first(x)).detach()
    report = apply_fp8(model, config=FP8Config(recipe_name=recipe, emulate=True))
    assert report.converted == ["first", "second"]
    assert report.skipped == [("odd", "a dim is not a multiple of 16"), ("lm_head", "filtered by lm_head")]
    assert "2 of 4 linear layers" in str(report)
    actual = model.second(model.first(x))
    error = float((actual - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.1  # rounded to three bits of mantissa, and no more than that
    actual.square().sum().backward()
    assert model.first.weight.grad.abs().max() > 0


def test_lora_layers_and_their_adapters_survive():
    model = build(lora=True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    report = apply_fp8(model, config=FP8Config(emulate=True))
    assert report.converted == ["first"]
    assert {name for name, reason in report.skipped if reason == "part of a LoRA layer"} == {
        "second",
        "second.lora_A",
        "second.lora_B",
    }
    assert type(model.second) is Adapted
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_frozen_stays_frozen():
    model = build()
    model.first.weight.requires_grad_(False)
    apply_fp8(model, config=FP8Config(emulate=True))
    assert not model.first.weight.requires_grad
    assert model.second.weight.requires_grad


def test_it_fails_closed():
    with pytest.raises(RuntimeError, match=r"fp8 cannot run here: no CUDA device .* Set fp8.emulate=True"):
        apply_fp8(build(), config=FP8Config())
    with pytest.raises(ValueError, match=r"filter_fqns holds decoder, which matches no linear layer"):
        apply_fp8(build(), config=FP8Config(emulate=True, filter_fqns=["decoder"]))
    with pytest.raises(ValueError, match=r"fp8 would convert none of 4 linear layers"):
        apply_fp8(build(), config=FP8Config(emulate=True, filter_fqns=["first", "second"]))


def test_disabled_changes_nothing():
    model = build()
    assert apply_fp8(model, config=FP8Config(enabled=False)).converted == []
    assert type(model.first) is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe_name": "blockwise"}, "recipe_name='blockwise': it must be one of rowwise"),
        ({"recipe_name": "rowwise", "enable_fsdp_float8_all_gather": True}, "only 'tensorwise' gathers in FP8"),
        ({"precompute_float8_dynamic_scale_for_fsdp": True}, "without enable_fsdp_float8_all_gather"),
        ({"force_recompute_fp8_weight_in_bwd": True}, "torchao has deprecated it"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FP8Config(**arguments)

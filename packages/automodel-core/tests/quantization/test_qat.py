"""Fake quantisation against integers by hand, and against what torchao really serves."""

import copy

import pytest
import torch
from torch import nn

from automodel_core.peft import PeftConfig, apply_lora, merge_lora
from automodel_core.quantization import apply_qat
from automodel_core.quantization.fake_quantize import fake_quantize_tokens, fake_quantize_weight


def test_weights_are_rounded_to_sixteen_levels_of_their_group():
    weight = torch.tensor([[7.5, -7.5, 0.4, 0.6, 75.0, 4.0, 6.0, -30.0]], requires_grad=True)
    rounded = fake_quantize_weight(weight, 4)
    # Scales are 1 and 10; the largest value of a group is 7.5 steps, rounds to 8 and is clipped to 7.
    assert rounded.tolist() == [[7.0, -8.0, 0.0, 1.0, 70.0, 0.0, 10.0, -30.0]]
    rounded.sum().backward()
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]]


def test_inputs_are_rounded_to_256_levels_of_their_token():
    x = torch.tensor([[-1.0, 0.0, 1.55, 0.004], [1.0, 2.0, 3.0, 510.0]], requires_grad=True)
    rounded = fake_quantize_tokens(x)
    torch.testing.assert_close(rounded[0], torch.tensor([-1.0, 0.0, 1.55, 0.0]))
    assert rounded[1].tolist() == [0.0, 2.0, 4.0, 510.0]
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 4))
    assert len(fake_quantize_tokens(torch.linspace(-3, 5, 5000)[None]).unique()) == 256


def test_zeros_stay_zeros():
    assert torch.equal(fake_quantize_weight(torch.zeros(2, 4), 4), torch.zeros(2, 4))
    assert torch.equal(fake_quantize_tokens(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_names_stay_and_rounding_can_be_switched(llama, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    plain, names = llama(**inputs).logits, list(llama.state_dict())
    quantization = apply_qat(llama, group_size=8, fake_quant_after_n_steps=2)
    assert list(llama.state_dict()) == names
    assert "lm_head" not in quantization.layers
    assert len(quantization.layers) == 14
    seen = []
    for step in (1, 2, 3):
        quantization.before_step(step)
        seen.append(torch.equal(llama(**inputs).logits, plain))
    assert seen == [True, True, False]
    with quantization.off():
        assert torch.equal(llama(**inputs).logits, plain)
    assert not torch.equal(llama(**inputs).logits, plain)
    assert "int8_dynact_int4weight, groups of 8, on 14 layers (q_proj x2" in str(quantization)


def test_training_with_rounding_makes_better_rounded_weights():
    torch.manual_seed(0)
    x, target = torch.randn(256, 4) @ torch.randn(4, 32), torch.randn(32, 8)  # many weights do equally well
    errors = {}
    for rounding in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 8, bias=False))
        quantization = apply_qat(model, scheme="int4_weight_only", group_size=16)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
        for _ in range(300):
            quantization.before_step(1 if rounding else 0)
            (model(x) - x @ target).square().mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        quantization.before_step(1)
        errors[rounding] = (model(x) - x @ target).square().mean().item()
    assert errors[True] < 0.5 * errors[False], errors


def test_an_adapter_learns_on_the_rounded_base(llama, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    apply_qat(llama, scheme="int4_weight_only", group_size=8, exclude_modules=["*mlp*"])
    rounded = llama(**inputs).logits
    apply_lora(llama, PeftConfig(target_modules=["q_proj", "up_proj"], dim=4))
    assert torch.equal(llama(**inputs).logits, rounded)
    layer = llama.model.layers[0].self_attn.q_proj
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 32)
    want = x @ (fake_quantize_weight(layer.weight, 8) + layer.delta_weight()).T
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
    merge_lora(llama, unload=True)
    assert type(layer).__name__ == "FakeQuantLinear"


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"scheme": "int2"}, "scheme='int2': choose one of int8_dynact_int4weight, int4_weight_only"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": 24}, "with 32 inputs: groups must divide them. Choose 32"),
        ({"group_size": 8, "exclude_modules": ["*"]}, "nothing left"),
    ],
)
def test_impossible_settings_are_refused(keys, said, llama):
    with pytest.raises(ValueError, match=said):
        apply_qat(llama, **keys)
    assert type(llama.model.layers[0].mlp.up_proj) is nn.Linear


def test_adapters_come_after_and_rounding_comes_once(llama):
    other = copy.deepcopy(llama)
    apply_lora(llama, PeftConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="Call apply_qat before LoRA"):
        apply_qat(llama, group_size=8)
    apply_qat(other, group_size=8)
    with pytest.raises(ValueError, match="it comes first, once"):
        apply_qat(other, group_size=8)


@pytest.mark.parametrize("scheme", ["int4_weight_only", "int8_dynact_int4weight"])
def test_the_numbers_are_those_that_torchao_serves(scheme):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerGroup

    served_as = {
        "int4_weight_only": lambda: torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
        "int8_dynact_int4weight": lambda: torchao.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=PerGroup(16)
        ),
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16, bias=False))
    served = copy.deepcopy(model)
    torchao.quantize_(served, served_as[scheme]())
    plain = model(x := torch.randn(5, 64))
    apply_qat(model, scheme=scheme, group_size=16)
    assert torch.equal(model(x), served(x))
    assert (model(x) - plain).abs().max() > 1e-3


def test_gradients_are_those_of_torchaos_own_training():
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16, bias=False))
    theirs = copy.deepcopy(model)
    weight = qat.IntxFakeQuantizeConfig(torch.int4, group_size=16)
    inputs = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    from torchao.quantization import quantize_

    quantize_(theirs, qat.QATConfig(activation_config=inputs, weight_config=weight, step="prepare"))
    apply_qat(model, group_size=16)
    x = torch.randn(5, 64)
    for one in (model, theirs):
        one(x).square().sum().backward()
    for ours, their in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-4, atol=1e-5)

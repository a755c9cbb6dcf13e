"""LoRA layers are known only by lora_A, lora_B, scaling and dropout."""

import copy
import re

import pytest
import torch
from torch import nn

from automodel_kernels import patch_model_with_kernel_optimizations
from automodel_kernels.backend import announced

RANK = 4


class Adapted(nn.Linear):
    """A LoRA layer as a training library would write it."""

    def forward(self, x):
        return super().forward(x) + self.scaling * self.lora_B(self.lora_A(self.dropout(x)))


def adapt(model, names=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), dropout=None):
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.split(".")[-1] in names:
            module.__class__ = Adapted
            module.lora_A = nn.Linear(module.in_features, RANK, bias=False)
            module.lora_B = nn.Linear(RANK, module.out_features, bias=False)
            module.scaling = 0.5
            module.dropout = dropout or nn.Identity()
    return model


def grads(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("ops", "counts"), [("lora", {"lora": 10}), (("lora", "lora_mlp"), {"lora": 4, "lora_mlp": 2})]
)
def test_same_loss_and_adapter_gradients(build_model, ops, counts):
    model = adapt(build_model("Llama"))
    patched = copy.deepcopy(model)
    report = patch_model_with_kernel_optimizations(patched, ops=ops)
    assert report.counts() == counts
    ids = torch.randint(3, 211, (2, 7))
    (loss, expected), (other, actual) = grads(model, ids), grads(patched, ids)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=1e-6)
    assert expected.keys() == actual.keys()
    for name, grad in expected.items():
        assert float(grad.norm()) > 0
        assert float((grad - actual[name]).norm()) <= 1e-5 * float(grad.norm()) + 1e-9, name
    assert set(announced()) >= {"lora_linear"}


def test_dropout_drops_in_training_alone_and_follows_the_seed(build_model):
    model = adapt(build_model("Llama"), dropout=nn.Dropout(0.5))
    patch_model_with_kernel_optimizations(model, ops="lora")
    ids = torch.randint(3, 211, (2, 7))
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.train()
    torch.manual_seed(3)
    first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
    torch.manual_seed(3)
    assert not torch.equal(first, second)
    assert torch.equal(first, model(input_ids=ids).logits)


def test_a_merged_layer_is_its_base(build_model):
    model = adapt(build_model("Llama"), names=("q_proj",))
    layer = model.model.layers[0].self_attn.q_proj
    patch_model_with_kernel_optimizations(model, ops="lora")
    x = torch.randn(2, 32)
    layer.merged = True
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))


def damage(layer, how):
    if how == "magnitude":
        layer.lora_magnitude_vector = nn.Parameter(torch.ones(layer.out_features))
    elif how == "quantised":
        layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    elif how == "post":
        layer.dropout, layer.dropout_position = nn.Dropout(0.1), "post"
    else:
        layer.lora_A.bias = nn.Parameter(torch.zeros(RANK))


REASONS = {
    "magnitude": "it carries lora_magnitude_vector",
    "quantised": r"its base weight is quantised \(Parameter, uint8\)",
    "post": "its dropout comes after the adapter",
    "bias": "its adapter has a bias",
}


@pytest.mark.parametrize("how", REASONS)
def test_layers_that_mean_something_else_are_left_alone(build_model, how):
    model = adapt(build_model("Llama"), names=("q_proj",))
    damage(model.model.layers[0].self_attn.q_proj, how)
    report = patch_model_with_kernel_optimizations(model, ops="lora")
    assert report.counts() == {"lora": 1}
    assert [skip.name for skip in report.skips] == ["model.layers.0.self_attn.q_proj"]
    assert re.search(REASONS[how], report.skips[0].reason)


def test_an_mlp_without_adapters_is_named(build_model):
    model = adapt(build_model("Llama"), names=("q_proj", "up_proj"))
    report = patch_model_with_kernel_optimizations(model, ops=("lora", "lora_mlp"))
    assert report.counts() == {"lora": 4}
    assert {skip.reason for skip in report.skips} == {"gate_proj has no LoRA adapter"}

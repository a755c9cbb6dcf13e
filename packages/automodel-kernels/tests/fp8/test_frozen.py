"""The FP8 base under LoRA: real FP8 products on CPU, exact adapters, gradients against the dequantised weight."""

import copy

import pytest
import torch
from torch import nn

from automodel_kernels.fp8 import dequantize_base, quantize_frozen_base
from automodel_kernels.fp8.scaled_linear import E4M3, frozen_fp8_linear, quantize_rows


class Adapted(nn.Linear):
    """A LoRA layer."""

    def forward(self, x):
        return super().forward(x) + self.scaling * self.lora_B(self.lora_A(x))


def build():
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, inner, outer in (("one", 64, 96), ("two", 96, 32)):
        layer = Adapted(inner, outer)
        layer.requires_grad_(False)
        layer.lora_A, layer.lora_B = nn.Linear(inner, 4, bias=False), nn.Linear(4, outer, bias=False)
        layer.scaling, layer.dropout = 0.5, nn.Identity()
        model.add_module(name, layer)
    return model


def test_rows_keep_their_scale():
    x = torch.randn(8, 64) * torch.logspace(-6, 6, 8).unsqueeze(1)
    values, scale = quantize_rows(x)
    assert values.dtype == E4M3
    error = ((values.float() * scale - x).norm(dim=1) / x.norm(dim=1)).max()
    assert 1e-3 < float(error) < 0.04
    values, scale = quantize_rows(torch.zeros(2, 16))
    assert torch.equal(values.float() * scale, torch.zeros(2, 16))


def test_product_and_gradient_against_the_dequantised_weight():
    weight, x = torch.randn(96, 64), torch.randn(5, 3, 64, requires_grad=True)
    values, scale = quantize_rows(weight)
    wide = values.double() * scale.double()
    y = frozen_fp8_linear(x, values, scale)
    expected = x.double() @ wide.t()
    assert float((y - expected).norm() / expected.norm()) < 0.04
    grad = torch.randn(y.shape)
    (dx,) = torch.autograd.grad(y, x, grad)
    expected_dx = grad.double() @ wide
    assert float((dx - expected_dx).norm() / expected_dx.norm()) < 0.04
    shuffled = grad.roll(1, -1).double() @ wide
    assert float((dx - shuffled).norm() / shuffled.norm()) > 0.5  # the bound sees a shift by one


def test_model_stays_close_and_its_adapters_train():
    model = build()
    exact = copy.deepcopy(model)
    names = [(name, p.requires_grad) for name, p in model.named_parameters()]
    report = quantize_frozen_base(model)
    assert report.converted == ["one", "two"]
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == names
    assert model.one.weight.dtype == E4M3
    x = torch.randn(16, 64)
    ours, theirs = model(x), exact(x)
    assert 1e-4 < float((ours - theirs).norm() / theirs.norm()) < 0.1
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters()):
        if p.requires_grad:
            assert float((p.grad - q.grad).norm() / q.grad.norm()) < 0.15, name


def test_undone_up_to_the_rounding():
    model = build()
    original = model.one.weight.detach().clone()
    quantize_frozen_base(model)
    assert dequantize_base(model) == 2
    assert "forward" not in vars(model.one)
    assert "weight_scale" not in dict(model.one.named_buffers())
    assert float((model.one.weight - original).norm() / original.norm()) < 0.04


def test_what_does_not_fit_is_named():
    model = build()
    model.one.weight.requires_grad_(True)
    assert quantize_frozen_base(model).skipped == [("one", "its base weight is trained")]
    with pytest.raises(ValueError, match="the model has no LoRA layer"):
        quantize_frozen_base(nn.Linear(16, 16))
    with pytest.raises(ValueError, match="filtered by one; filtered by two"):
        quantize_frozen_base(build(), filter_fqns=("one", "two"))

"""LoRA on bitsandbytes layers, on the real package."""

import pytest
import torch
from torch import nn

from automodel_core.peft import PeftConfig, apply_lora, merge_lora
from automodel_core.peft.base_weight import base_weight

bnb = pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' is not installed")


@pytest.fixture
def quantized():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model = nn.Sequential(*(
        bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32) if isinstance(m, nn.Linear) else m
        for m in dense
    ))  # fmt: skip
    model.load_state_dict(dense.state_dict())
    return model.to("cpu")


def test_nf4_base_trains_its_adapter_alone(quantized):
    x = torch.randn(8, 64)
    want = quantized(x).detach()
    apply_lora(quantized, PeftConfig(dim=4))
    layer = quantized[0]
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert layer.lora_A.weight.dtype == torch.float32
    torch.testing.assert_close(quantized(x), want)
    codes = layer.weight.data.clone()
    optimizer = torch.optim.SGD([p for p in quantized.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        loss = (quantized(x) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-2
    assert torch.equal(layer.weight.data, codes)


def test_output_is_the_dequantised_product_plus_the_adapter(quantized):
    apply_lora(quantized, PeftConfig(dim=4))
    layer, x = quantized[0], torch.randn(3, 64)
    nn.init.normal_(layer.lora_B.weight)
    want = x @ base_weight(layer).T + layer.bias + x @ layer.delta_weight().T
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


def test_merging_into_codes_is_refused(quantized):
    apply_lora(quantized, PeftConfig(dim=4))
    with pytest.raises(ValueError, match="quantised or sharded"):
        merge_lora(quantized)

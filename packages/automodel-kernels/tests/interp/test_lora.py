"""LoRA products, linear layer and MLP in Triton's interpreter."""

import pytest
import torch

from automodel_kernels.ops import lora_glu_mlp, lora_linear
from automodel_kernels.ops.lora_mlp import LoRAWeights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(dtype, inner, outer, rank):
    scale = inner**-0.5
    return {
        "weight": (torch.randn(outer, inner) * scale).to(dtype),
        "lora_a": (torch.randn(rank, inner) * scale).to(dtype),
        "lora_b": torch.randn(outer, rank).to(dtype),
    }


@pytest.mark.parametrize("rank", [4, 16, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lora_linear_is_as_good_as_torch(three_ways, dtype, rank):
    inputs = {"x": torch.randn(2, 9, 40).to(dtype), **weights(dtype, 40, 50, rank), "bias": torch.randn(50).to(dtype)}
    results = three_ways(lambda **tensors: lora_linear(scaling=0.5, **tensors), inputs)
    results.check()
    results.check_mutations()


@pytest.mark.parametrize("num", [0, 1, 15, 33])
def test_lora_linear_of_ragged_token_counts(three_ways, num):
    inputs = {"x": torch.randn(num, 40), **weights(torch.float32, 40, 50, 8)}
    three_ways(lambda **tensors: lora_linear(scaling=2.0, **tensors), inputs).check()


def test_dropout_draws_the_same_mask_on_both_backends(three_ways):
    inputs = {"x": torch.randn(64, 40), **weights(torch.float32, 40, 50, 8)}
    function = lambda **tensors: lora_linear(scaling=2.0, dropout_p=0.3, seed=11, **tensors)  # noqa: E731
    kernel, twin = three_ways(function, inputs).kernel, three_ways(function, inputs).twin
    for name, tensor in kernel.items():
        torch.testing.assert_close(tensor, twin[name], rtol=1e-4, atol=1e-4)


def test_dora(three_ways):
    inputs = {"x": torch.randn(5, 40), **weights(torch.float32, 40, 50, 8), "magnitude": torch.rand(50) + 0.5}
    del inputs["weight"]
    base = weights(torch.float64, 40, 50, 8)["weight"]

    def function(x, lora_a, lora_b, magnitude):
        return lora_linear(x, base.to(x.dtype), lora_a, lora_b, scaling=0.5, magnitude=magnitude)

    three_ways(function, inputs).check()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_lora_mlp_is_as_good_as_torch(three_ways, dtype, activation):
    parts = {name: weights(dtype, *shape, 4) for name, shape in {"g": (24, 40), "u": (24, 40), "d": (40, 24)}.items()}
    frozen = {name: part.pop("weight") for name, part in parts.items()}
    inputs = {"x": torch.randn(7, 24).to(dtype)}
    inputs |= {f"{key}_{name}": tensor for name, part in parts.items() for key, tensor in part.items()}

    def function(x, **adapters):
        layers = [
            LoRAWeights(frozen[n].to(x.dtype), adapters[f"lora_a_{n}"], adapters[f"lora_b_{n}"], 0.5) for n in "gud"
        ]
        return lora_glu_mlp(x, *layers, activation=activation)

    results = three_ways(function, inputs)
    results.check()
    results.check_mutations()

"""RMSNorm, RoPE and gated linear units in Triton's interpreter."""

import pytest
import torch

from automodel_kernels import reference
from automodel_kernels.ops import geglu, rms_norm, rope, swiglu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("order", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_is_as_good_as_torch(three_ways, dtype, order, fused):
    inputs = {"x": torch.randn(2, 5, 33).to(dtype), "weight": torch.randn(33).to(dtype)}
    if fused:
        inputs["residual"] = torch.randn(2, 5, 33).to(dtype)
    results = three_ways(lambda **tensors: rms_norm(order=order, **tensors), inputs)
    results.check()
    results.check_mutations()


@pytest.mark.parametrize("shape", [(0, 16), (1, 3), (1, 16), (37, 128), (3, 255), (3, 257), (2, 3, 7, 8)], ids=str)
def test_rms_norm_of_ragged_shapes(three_ways, shape):
    three_ways(rms_norm, {"x": torch.randn(shape), "weight": torch.randn(shape[-1])}).check()


def test_rms_norm_with_a_wider_weight(three_ways):
    inputs = {"x": torch.randn(5, 32).bfloat16(), "weight": torch.randn(32)}
    results = three_ways(rms_norm, inputs)
    assert results.kernel["out0"].dtype == results.twin["out0"].dtype == torch.float32
    assert_dtype_of_gradients(results, inputs)
    results.check({"dx", "dweight"})


def assert_dtype_of_gradients(results, inputs):
    for name, tensor in inputs.items():
        assert results.kernel[f"d{name}"].dtype == tensor.dtype


def test_rms_norm_of_strided_rows_and_expanded_gradients(three_ways):
    x = torch.randn(6, 64)[:, ::2]
    expanded = lambda outputs: [torch.full((1, 1), 0.3).expand(outputs[0].shape)]  # noqa: E731
    three_ways(rms_norm, {"x": x, "weight": torch.randn(32)}, upstream=expanded).check()


def test_only_one_output_of_the_residual_form_is_used():
    x, residual, weight = (torch.randn(3, 16, requires_grad=True) for _ in range(3))
    y, stream = rms_norm(x, weight[0], residual=residual)
    (dx,) = torch.autograd.grad(stream.sum(), x, retain_graph=True)
    assert torch.equal(dx, torch.ones_like(x))
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.isfinite(dx).all()
    assert dx.abs().max() > 0


@pytest.mark.parametrize("rotated", [8, 4], ids=["whole", "partial"])
@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_is_as_good_as_torch(three_ways, dtype, unsqueeze_dim, rotated):
    shape = lambda heads: (2, heads, 5, 8) if unsqueeze_dim == 1 else (2, 5, heads, 8)  # noqa: E731
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    cos, sin = reference.rope_cos_sin(positions, torch.rand(rotated // 2) + 0.1)

    def function(q, k):
        kind = q.dtype
        return rope(q, k, cos.to(kind), sin.to(kind), unsqueeze_dim=unsqueeze_dim)

    results = three_ways(function, {"q": torch.randn(shape(3)).to(dtype), "k": torch.randn(shape(1)).to(dtype)})
    results.check()
    results.check_mutations()
    assert not torch.equal(results.kernel["out0"], results.kernel["out0"].roll(1, 3 - unsqueeze_dim))


def test_rope_of_projections_as_attention_makes_them(three_ways):
    """Queries and keys are transposed views, and cos is shared by the batch."""
    cos, sin = reference.rope_cos_sin(torch.arange(4)[None], torch.rand(4))
    inputs = {"q": torch.randn(2, 4, 3, 8).transpose(1, 2), "k": torch.randn(2, 4, 1, 8).transpose(1, 2)}
    three_ways(lambda q, k: rope(q, k, cos.to(q.dtype), sin.to(q.dtype)), inputs).check()


def test_rope_with_three_position_axes(three_ways):
    positions = torch.randint(0, 9, (3, 2, 4))
    cos, sin = reference.rope_cos_sin(positions, torch.rand(4) + 0.1, mrope_section=[1, 2, 1])
    inputs = {"q": torch.randn(2, 2, 4, 8), "k": torch.randn(2, 2, 4, 8)}
    three_ways(lambda q, k: rope(q, k, cos.to(q.dtype), sin.to(q.dtype)), inputs).check()


@pytest.mark.parametrize("kind", ["silu", "tanh", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_units_are_as_good_as_torch(three_ways, dtype, kind):
    function = swiglu if kind == "silu" else lambda gate, up: geglu(gate, up, approximate=kind)
    inputs = {"gate": (torch.randn(3, 5, 37) * 2).to(dtype), "up": torch.randn(3, 5, 37).to(dtype)}
    results = three_ways(function, inputs)
    results.check()
    results.check_mutations()


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (2, 1023), (2, 1025)], ids=str)
def test_gated_units_of_ragged_shapes(three_ways, shape):
    three_ways(swiglu, {"gate": torch.randn(shape), "up": torch.randn(shape)}).check()


def test_gated_units_of_a_fused_projection(three_ways):
    def function(both):
        gate, up = both.chunk(2, dim=-1)
        return swiglu(gate, up)

    three_ways(function, {"both": torch.randn(4, 2 * 19)}).check()


def test_large_gates_do_not_overflow():
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], requires_grad=True)
    for function in (swiglu, geglu):
        (slope,) = torch.autograd.grad(function(gate, torch.ones_like(gate)).sum(), gate)
        torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))

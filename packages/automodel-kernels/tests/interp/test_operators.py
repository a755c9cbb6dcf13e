"""The registered operators: fake implementations, autograd formulas, compilation, and rounding."""

import pytest
import torch

from automodel_kernels.backend import KernelFallbackError, use_backend
from automodel_kernels.ops import cross_entropy, geglu, linear_cross_entropy, lora_linear, rms_norm, rope, swiglu

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def operators():
    from automodel_kernels.ops.linear_ce_op import linear_ce
    from automodel_kernels.triton_ops.cross_entropy import token_cross_entropy
    from automodel_kernels.triton_ops.glu import glu
    from automodel_kernels.triton_ops.lora import add_expand_, shrink
    from automodel_kernels.triton_ops.rms_norm import rms_norm_op
    from automodel_kernels.triton_ops.rope import rope_op

    def leaf(*shape):
        return torch.randn(*shape, requires_grad=True)

    labels = torch.tensor([1, -100, 3])
    head = (leaf(3, 8), leaf(20, 8), leaf(20), labels, None, -100, 0.0, 0.0, 0.0, 2)
    return {
        "linear_ce": (linear_ce, (*head, False, True, True, True, True)),
        "linear_ce none": (linear_ce, (*head, True, True, False, False, False)),
        "token_cross_entropy": (token_cross_entropy, (leaf(3, 20), labels, -100, 0.0, 0.0, 0.0)),
        "glu": (glu, (leaf(3, 20), leaf(3, 20), "silu")),
        "rms_norm": (rms_norm_op, (leaf(3, 20), leaf(3, 20), leaf(20), 1e-6, False)),
        "rope": (rope_op, (leaf(1, 2, 3, 8), leaf(1, 1, 3, 8), torch.rand(1, 3, 8), torch.rand(1, 3, 8), False)),
        "lora_shrink": (shrink, (torch.randn(3, 20), torch.randn(4, 20))),
        "lora_add_expand_": (add_expand_, (torch.randn(3, 20), torch.randn(3, 4), torch.randn(20, 4), 0.5)),
    }


@pytest.mark.parametrize("name", operators())
def test_opcheck(name):
    operator, args = operators()[name]
    torch.library.opcheck(operator, args, test_utils=TESTS)


def compiled_cases():
    x, w = torch.randn(4, 16), torch.randn(16)
    a, b, base = torch.randn(4, 16), torch.randn(12, 4), torch.randn(12, 16)
    labels = torch.tensor([1, -100, 3, 11])
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 1, 4, 8)
    cos, sin = torch.rand(1, 4, 8), torch.rand(1, 4, 8)
    return {
        "rms_norm": (lambda x: rms_norm(x, w), x),
        "swiglu": (lambda x: swiglu(x, x + 1), x),
        "geglu": (lambda x: geglu(x, x + 1), x),
        "rope": (lambda q: rope(q, k, cos, sin)[0], q),
        "cross_entropy": (lambda x: cross_entropy(x, labels), x),
        "linear_cross_entropy": (lambda x: linear_cross_entropy(x, base, labels), x),
        "lora_linear": (lambda x: lora_linear(x, base, a, b, scaling=0.5), x),
    }


@pytest.mark.parametrize("name", compiled_cases())
def test_compiled_in_one_graph_like_eager(name):
    function, example = compiled_cases()[name]
    example.requires_grad_()
    results = []
    for f in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        out = f(example)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), example)))
    torch.testing.assert_close(results[1], results[0])


def test_bfloat16_stores_round_to_nearest_even():
    from automodel_kernels.triton_ops.glu import glu

    gate = torch.full((1, 4096), 200.0).bfloat16()  # silu(200) is 200: the product is exact in float32
    up = torch.randn(1, 4096).bfloat16()
    assert torch.equal(glu(gate, up, "silu"), (gate.float() * up.float()).bfloat16())


def test_float64_falls_back_and_strict_says_so():
    x = torch.randn(2, 16, dtype=torch.float64)
    with pytest.raises(KernelFallbackError, match=r"rms_norm: .* dtype float64 \(kernels take float32"):
        rms_norm(x, torch.ones(16, dtype=torch.float64), strict=True)
    with use_backend("triton"), pytest.raises(KernelFallbackError):
        swiglu(x, x)
    assert swiglu(x, x).dtype == torch.float64

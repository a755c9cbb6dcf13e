"""On a CUDA device: Triton against torch and float64 in the dtypes of training, syncs, and determinism."""

import pytest
import torch

from automodel_kernels import ops, reference
from automodel_kernels.backend import use_backend
from automodel_kernels.testing import assert_as_good_as

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
T, H, V, I = 515, 1024, 32003, 2816


def make(*shape, dtype):
    return torch.randn(*shape, device="cuda").to(dtype)


def cases(dtype):
    cos, sin = reference.rope_cos_sin(torch.arange(T, device="cuda")[None], torch.rand(64, device="cuda"))
    labels = torch.randint(0, V, (T,), device="cuda")
    labels[::3] = -100
    head = make(V, H, dtype=dtype) / 32
    return {
        "rms_norm": (ops.rms_norm, {"x": make(T, H, dtype=dtype), "weight": make(H, dtype=dtype)}),
        "swiglu": (ops.swiglu, {"gate": make(T, I, dtype=dtype), "up": make(T, I, dtype=dtype)}),
        "rope": (
            lambda q, k: ops.rope(q, k, cos.to(q.dtype), sin.to(q.dtype)),
            {"q": make(1, 8, T, 128, dtype=dtype), "k": make(1, 2, T, 128, dtype=dtype)},
        ),
        "lora": (
            lambda x, a, b: ops.lora_linear(x, head[:I].to(x.dtype), a, b, scaling=0.5),
            {"x": make(T, H, dtype=dtype), "a": make(16, H, dtype=dtype) / 32, "b": make(I, 16, dtype=dtype)},
        ),
        "cross_entropy": (lambda logits: ops.cross_entropy(logits, labels), {"logits": make(T, V, dtype=dtype)}),
        "linear_ce": (
            lambda hidden, weight: ops.linear_cross_entropy(hidden, weight, labels, chunk_rows=128),
            {"hidden": make(T, H, dtype=dtype), "weight": head},
        ),
    }


def run(function, inputs, dtype, backend, strict=False):
    leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in inputs.items()}
    with use_backend(backend, strict=strict):
        out = function(**leaves)
        outs = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator(device="cuda").manual_seed(1)
        ups = [torch.randn(o.shape, generator=generator, device="cuda").to(o.dtype) for o in outs]
        torch.autograd.backward(outs, ups)
    return [*(o.detach() for o in outs), *(leaf.grad for leaf in leaves.values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "rope", "lora", "cross_entropy", "linear_ce"])
def test_triton_is_as_good_as_torch(name, dtype):
    function, inputs = cases(dtype)[name]
    kernel = run(function, inputs, dtype, "triton")
    twin = run(function, inputs, dtype, "torch")
    exact = run(function, inputs, torch.float64, "torch")
    for number, tensors in enumerate(zip(kernel, twin, exact)):
        assert_as_good_as(f"{name} {number}", *tensors)


def test_linear_cross_entropy_never_waits_for_the_device():
    hidden = make(512, 256, dtype=torch.bfloat16).requires_grad_()
    weight = make(8192, 256, dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 8192, (512,), device="cuda")
    index = torch.arange(0, 512, 4, device="cuda")
    ops.linear_cross_entropy(hidden, weight, labels, label_index=index).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.linear_cross_entropy(hidden, weight, labels, label_index=index).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["rms_norm", "lora", "linear_ce"])
def test_two_runs_give_the_same_bits(name):
    function, inputs = cases(torch.bfloat16)[name]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(function, inputs, torch.bfloat16, "triton") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))

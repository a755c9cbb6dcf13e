"""The PyTorch paths: exact gradients (float64), options, dtypes, and refusal of wrong input."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from automodel_kernels import ops, reference
from automodel_kernels.backend import KernelFallbackError, use_backend
from automodel_kernels.ops.lora_mlp import LoRAWeights

OPTIONS = [{}, {"softcap": 3.0}, {"z_loss": 0.1}, {"label_smoothing": 0.2}, {"softcap": 3.0, "z_loss": 0.1}]
LABELS = torch.tensor([0, -100, 10, 3, -100])


@pytest.fixture(autouse=True)
def _torch_backend():
    with use_backend("torch"):
        yield


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear_cross_entropy_gradients(options, reduction):
    def loss(hidden, weight, bias):
        return ops.linear_cross_entropy(hidden, weight, LABELS, bias=bias, reduction=reduction, chunk_rows=2, **options)

    hidden, weight, bias = leaf(5, 4), leaf(11, 4), leaf(11)
    assert gradcheck(loss, (hidden, weight, bias))
    naive = reference.linear_cross_entropy(hidden, weight, LABELS, bias=bias, reduction=reduction, **options)
    torch.testing.assert_close(loss(hidden, weight, bias), naive)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy_gradients(options):
    assert gradcheck(lambda x: ops.cross_entropy(x, LABELS, reduction="none", **options), (leaf(5, 11),))


def test_cross_entropy_is_torchs():
    logits = leaf(5, 11)
    torch.testing.assert_close(ops.cross_entropy(logits, LABELS), F.cross_entropy(logits, LABELS))
    smooth = ops.cross_entropy(logits, LABELS, label_smoothing=0.3)
    torch.testing.assert_close(smooth, F.cross_entropy(logits, LABELS, label_smoothing=0.3))


@pytest.mark.parametrize("order", ["llama", "gemma"])
def test_layer_gradients(order):
    assert gradcheck(lambda x, w, r: ops.rms_norm(x, w, order=order, residual=r), (leaf(2, 3), leaf(3), leaf(2, 3)))
    assert gradcheck(ops.swiglu, (leaf(2, 3), leaf(2, 3)))
    assert gradcheck(ops.geglu, (leaf(2, 3), leaf(2, 3)))
    cos, sin = reference.rope_cos_sin(torch.arange(3)[None], torch.rand(2), dtype=torch.float64)
    assert gradcheck(lambda q, k: ops.rope(q, k, cos, sin), (leaf(1, 2, 3, 6), leaf(1, 1, 3, 6)))


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.4, "seed": 5}], ids=str)
def test_lora_gradients(options):
    def function(x, w, a, b, bias):
        return ops.lora_linear(x, w, a, b, scaling=0.7, bias=bias, **options)

    assert gradcheck(function, (leaf(2, 3, 4), leaf(5, 4), leaf(2, 4), leaf(5, 2), leaf(5)))


def test_dora_is_its_reference():
    x, w, a, b, m = leaf(3, 4), leaf(5, 4), leaf(2, 4), leaf(5, 2), leaf(5)
    ours = ops.lora_linear(x, w.detach(), a, b, scaling=0.7, magnitude=m)
    plain = reference.lora_linear(x, w.detach(), a, b, scaling=0.7, magnitude=m)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), (x, a, b, m)) for y in (ours, plain)))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_lora_mlp_gradients(activation):
    frozen = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)]

    def function(x, *adapters):
        layers = [LoRAWeights(w.double(), adapters[2 * i], adapters[2 * i + 1], 0.5) for i, w in enumerate(frozen)]
        return ops.lora_glu_mlp(x, *layers, activation=activation)

    adapters = [leaf(2, 4), leaf(6, 2), leaf(2, 4), leaf(6, 2), leaf(2, 6), leaf(4, 2)]
    assert gradcheck(function, (leaf(3, 4), *adapters))


def test_a_frozen_lora_base_saves_and_computes_no_gradient():
    x, w, a, b = leaf(3, 4), torch.randn(5, 4, dtype=torch.float64), leaf(2, 4), leaf(5, 2)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        ops.lora_linear(x, w, a, b, scaling=1.0, dropout_p=0.5)
    assert sum(sizes) == x.numel() + w.numel() + a.numel() + b.numel() + 3 * 2  # the product of rank 2, and no mask


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_frozen_parts_get_no_gradient(reduction):
    hidden, weight = leaf(5, 4), leaf(11, 4)
    loss = ops.linear_cross_entropy(hidden, weight.detach(), LABELS, reduction=reduction).sum()
    assert torch.autograd.grad(loss, hidden)[0].abs().max() > 0
    loss = ops.linear_cross_entropy(hidden.detach(), weight, LABELS, reduction=reduction).sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() > 0
    with torch.no_grad():
        assert not ops.linear_cross_entropy(hidden, weight, LABELS).requires_grad


def test_backward_twice_gives_the_same():
    hidden, weight = leaf(5, 4), leaf(11, 4)
    loss = ops.linear_cross_entropy(hidden, weight, LABELS) * 3.0
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), first)


def test_tied_embeddings_add_both_gradients():
    weight, ids = leaf(11, 4), torch.tensor([1, 2, 3, 4, 5])
    grads = []
    for function in (ops.linear_cross_entropy, reference.linear_cross_entropy):
        grads.append(torch.autograd.grad(function(F.embedding(ids, weight), weight, LABELS), weight)[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_low_precision_head_on_cpu_is_computed_in_float32():
    hidden, weight = torch.randn(5, 4).bfloat16().requires_grad_(), torch.randn(11, 4).bfloat16().requires_grad_()
    loss = ops.linear_cross_entropy(hidden, weight, LABELS)
    exact = reference.linear_cross_entropy(hidden.double(), weight.double(), LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(loss, hidden)[0].dtype == torch.bfloat16


def test_autocast_casts_the_head():
    hidden, weight = torch.randn(5, 4), torch.randn(11, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = ops.linear_cross_entropy(hidden, weight, LABELS)
    expected = ops.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), LABELS)
    torch.testing.assert_close(low, expected)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 5, 64])
def test_chunk_size_changes_nothing(chunk_rows):
    hidden, weight = leaf(5, 4), leaf(11, 4)
    loss = ops.linear_cross_entropy(hidden, weight, LABELS, chunk_rows=chunk_rows)
    torch.testing.assert_close(loss, reference.linear_cross_entropy(hidden, weight, LABELS))


def test_empty_batches():
    hidden, weight = leaf(0, 4), leaf(11, 4)
    loss = ops.linear_cross_entropy(hidden, weight, LABELS[:0])
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad.abs().max() == 0
    logits = leaf(0, 11)
    ops.cross_entropy(logits, LABELS[:0]).backward()
    assert logits.grad.shape == (0, 11)


X = torch.randn(2, 4)
WRONG = {
    "head": (
        lambda: ops.linear_cross_entropy(X, torch.randn(11, 5), LABELS[:2]),
        r"must be \[\.\.\., H\] and \[V, H\]",
    ),
    "bias": (
        lambda: ops.linear_cross_entropy(X, torch.randn(11, 4), LABELS[:2], bias=X),
        r"bias has shape \(2, 4\): it must be \(11,\)",
    ),
    "rows": (lambda: ops.linear_cross_entropy(X, X, LABELS[:2], chunk_rows=0), "chunk_rows=0: it must be 1 or more"),
    "labels": (lambda: ops.cross_entropy(X, LABELS), r"labels have shape \(5,\), the tokens have shape \(2,\)"),
    "range": (
        lambda: ops.cross_entropy(X, torch.tensor([0, 4])),
        r"label 4 is out of range: labels must be in \[0, 4\)",
    ),
    "negative": (lambda: ops.cross_entropy(X, torch.tensor([0, -1])), "label -1 is out of range"),
    "reduction": (lambda: ops.cross_entropy(X, LABELS[:2], reduction="max"), "reduction='max': it must be one of"),
    "smoothing": (lambda: ops.cross_entropy(X, LABELS[:2], label_smoothing=1.0), r"label_smoothing=1\.0"),
    "norm": (lambda: ops.rms_norm(X, torch.ones(3)), r"they must be \[\.\.\., H\] and \[H\]"),
    "order": (lambda: ops.rms_norm(X, torch.ones(4), order="olmo"), "order='olmo': it must be one of gemma, llama"),
    "residual": (lambda: ops.rms_norm(X, torch.ones(4), residual=X[:1]), r"residual has shape \(1, 4\)"),
    "gate": (lambda: ops.swiglu(X, X[:1]), "they must be equal"),
    "gelu": (lambda: ops.geglu(X, X, approximate="fast"), "approximate='fast': it must be 'tanh' or 'none'"),
    "rank": (lambda: ops.lora_linear(X, X, X, torch.randn(2, 3), scaling=1.0), r"\[O, H\], \[r, H\] and \[O, r\]"),
    "dropout": (lambda: ops.lora_linear(X, X, X, torch.eye(2), scaling=1.0, dropout_p=1.0), r"dropout_p=1\.0"),
    "cos": (
        lambda: ops.rope(*[torch.ones(1, 2, 3, 4)] * 2, *[torch.ones(1, 2, 4)] * 2),
        r"it must be \[1 or 1, 3, R\]",
    ),
    "odd": (lambda: ops.rope(*[torch.ones(1, 2, 3, 4)] * 2, *[torch.ones(1, 3, 3)] * 2), "R=3: it must be even"),
    "backend": (lambda: use_backend("cuda").__enter__(), "backend='cuda': it must be one of auto, torch, triton"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_before_anything_runs(case):
    function, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        function()


def test_wrong_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"labels have dtype torch\.int32: it must be torch\.int64"):
        ops.cross_entropy(X, LABELS[:2].int())
    with pytest.raises(TypeError, match="they must be equal outside autocast"):
        ops.linear_cross_entropy(X, X.double(), LABELS[:2])


@pytest.mark.skipif("TRITON_INTERPRET" in __import__("os").environ, reason="the kernels run in this lane")
def test_strict_makes_the_fallback_an_error():
    with (
        use_backend("auto"),
        pytest.raises(KernelFallbackError, match="swiglu: the Triton kernel cannot run here: CPU"),
    ):
        ops.swiglu(X, X, strict=True)


def test_same_bits_twice_under_deterministic_algorithms():
    hidden, weight = torch.randn(300, 16), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (300,))
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, labels), weight)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*grads)

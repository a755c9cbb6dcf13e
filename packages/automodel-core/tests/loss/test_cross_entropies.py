"""Every cross-entropy against a float64 reference, with mutations that the same assertion must reject."""

import pytest
import torch
import torch.nn.functional as F

from automodel_core.loss import ChunkedCrossEntropy, FusedLinearCrossEntropy, HeadTransform, MaskedCrossEntropy

B, T, H, V = 3, 7, 16, 53
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"logit_softcapping": 3.0},
           {"label_smoothing": 0.2, "z_loss": 1e-3, "logit_softcapping": 5.0}]  # fmt: skip


def problem(dtype=torch.float64, ignored=0.4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, H, generator=rng, dtype=torch.float64)
    weight = torch.randn(V, H, generator=rng, dtype=torch.float64)
    bias = torch.randn(V, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, V, (B, T), generator=rng)
    labels[torch.rand(B, T, generator=rng) < ignored] = -100
    if ignored < 1.0:
        labels[0, 0], labels[1, 1] = 0, V - 1
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)], labels


def reference(tensors, labels, count, *, label_smoothing=0.0, z_loss=0.0, logit_softcapping=0.0, scale=1.0):
    hidden, weight, bias = (t.detach().double().requires_grad_() for t in tensors)
    logits = (hidden @ weight.T + bias) * scale
    if logit_softcapping:
        logits = logit_softcapping * torch.tanh(logits / logit_softcapping)
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits.reshape(-1, V), labels.reshape(-1).tolist(), strict=True):
        if label == -100:
            continue
        log_p = row - row.logsumexp(0)
        total = total - (1 - label_smoothing) * log_p[label] - label_smoothing * log_p.mean()
        total = total + z_loss * row.logsumexp(0) ** 2
    loss = total / count
    grads = torch.autograd.grad(loss, (hidden, weight, bias)) if total.requires_grad else None
    return loss, grads


def assert_close(got, want, tolerance):
    got, want = got.double(), want.double()
    assert (got - want).norm() <= tolerance * want.norm()
    assert 0.98 <= got.norm() / want.norm() <= 1.02


def run(kind, tensors, labels, count, **options):
    hidden, weight, bias = tensors
    if kind == "fused":
        return FusedLinearCrossEntropy(chunk_len=4, **options)(hidden, labels, count, weight=weight, bias=bias)
    logits = F.linear(hidden, weight, bias)
    loss = MaskedCrossEntropy(**options) if kind == "masked" else ChunkedCrossEntropy(4, **options)
    return loss(logits, labels, count)


KINDS = ["masked", "chunked", "fused"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_match_float64(kind, options):
    tensors, labels = problem(torch.float32)
    want, want_grads = reference(tensors, labels, 11, **options)
    loss = run(kind, tensors, labels, 11, **options)
    grads = torch.autograd.grad(loss * 3.0, tensors)
    assert loss.dtype == torch.float32
    assert_close(loss, want, 1e-6)
    for got, expected in zip(grads, want_grads, strict=True):
        assert_close(got, 3.0 * expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_assertion_rejects_wrong_results(kind):
    tensors, labels = problem(torch.float32)
    want, want_grads = reference(tensors, labels, 11)
    shifted = run(kind, tensors, labels.roll(1, 1), 11)
    with pytest.raises(AssertionError):
        assert_close(shifted, want, 1e-6)
    for wrong in (torch.zeros_like(want_grads[0]), want_grads[0] * 1.03, want_grads[0].roll(1, 1)):
        with pytest.raises(AssertionError):
            assert_close(wrong, want_grads[0], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_supervised_is_exactly_zero_and_connected(kind):
    tensors, labels = problem(torch.float32, ignored=1.1)
    loss = run(kind, tensors, labels, 0)
    assert loss.item() == 0.0
    for grad in torch.autograd.grad(loss, tensors):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("kind", KINDS)
def test_reductions_agree(kind):
    tensors, labels = problem(torch.float32)
    count = int((labels != -100).sum())
    none = run(kind, tensors, labels, 5, reduction="none")
    assert none.shape == labels.shape
    assert torch.equal(none[labels == -100], torch.zeros(int((labels == -100).sum())))
    torch.testing.assert_close(none.sum() / 5, run(kind, tensors, labels, 5))
    torch.testing.assert_close(none.sum() / count, run(kind, tensors, labels, 5, reduction="mean"))
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(3))
    logits = F.linear(*tensors)
    plain = (F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * weights).sum()
    for got, want in zip(
        torch.autograd.grad((none * weights).sum(), tensors), torch.autograd.grad(plain, tensors), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_label_outside_the_vocabulary_is_named(kind):
    tensors, labels = problem(torch.float32)
    labels[0, 0] = V
    with pytest.raises(ValueError, match=f"label {V} for a vocabulary of {V}: labels are 0 to {V - 1}"):
        run(kind, tensors, labels, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_disagree_are_refused(kind):
    tensors, labels = problem(torch.float32)
    with pytest.raises(ValueError, match=r"labels \(3, 6\) for logits or hidden states \(3, 7"):
        run(kind, tensors, labels[:, 1:], 5)


def test_mask_leaves_positions_out_and_labels_alone():
    tensors, labels = problem(torch.float32, ignored=0.0)
    before, mask = labels.clone(), torch.zeros_like(labels)
    mask[1] = 1
    logits = F.linear(*tensors)
    loss = MaskedCrossEntropy()(logits, labels, 7, mask=mask)
    torch.testing.assert_close(loss, F.cross_entropy(logits[1], labels[1], reduction="sum") / 7)
    assert torch.equal(labels, before)


def test_another_ignore_index_counts_minus_100_no_more_than_it_should():
    tensors, labels = problem(torch.float32)
    other = labels.masked_fill(labels == -100, 7)
    torch.testing.assert_close(
        run("masked", tensors, other, 5, ignore_index=7), run("fused", tensors, other, 5, ignore_index=7)
    )


def test_label_index_gives_what_looking_up_gives():
    tensors, labels = problem(torch.float32)
    hidden, weight, bias = tensors
    ignored = int(torch.nonzero(labels.flatten() == -100)[0])
    index = torch.cat([torch.nonzero(labels.flatten() != -100).flatten(), torch.tensor([ignored, ignored])])
    want = run("fused", tensors, labels, 9)
    got = FusedLinearCrossEntropy()(hidden, labels, 9, weight=weight, bias=bias, label_index=index)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, tensors), strict=True):
        torch.testing.assert_close(a, b)


def test_ignored_rows_may_hold_nan():
    tensors, labels = problem(torch.float32, ignored=0.0)
    labels[2, 3] = -100
    with torch.no_grad():
        tensors[0][2, 3] = float("nan")
    everything = torch.arange(B * T)
    hidden, weight, bias = tensors
    loss = FusedLinearCrossEntropy(chunk_len=5)(hidden, labels, 5, weight=weight, bias=bias, label_index=everything)
    grads = torch.autograd.grad(loss, tensors)
    assert all(bool(torch.isfinite(t).all()) for t in (loss, *grads))


def test_scale_of_the_head_comes_before_the_cap():
    tensors, labels = problem(torch.float32)
    hidden, weight, bias = tensors
    want, want_grads = reference(tensors, labels, 9, logit_softcapping=4.0, scale=0.25)
    loss = FusedLinearCrossEntropy(chunk_len=4)(
        hidden, labels, 9, weight=weight, bias=bias, transform=HeadTransform(0.25, 4.0)
    )
    assert_close(loss, want, 1e-6)
    for got, expected in zip(torch.autograd.grad(loss, tensors), want_grads, strict=True):
        assert_close(got, expected, 1e-5)


def test_bfloat16_is_no_worse_than_torch_in_bfloat16():
    tensors, labels = problem(torch.bfloat16)
    _, want_grads = reference(tensors, labels, 11)
    plain = F.cross_entropy(F.linear(*tensors).float().reshape(-1, V), labels.reshape(-1), reduction="sum") / 11
    plain_grads = torch.autograd.grad(plain, tensors)
    grads = torch.autograd.grad(run("fused", tensors, labels, 11), tensors)
    for got, torchs, exact in zip(grads, plain_grads, want_grads, strict=True):
        assert (got.double() - exact).norm() <= 2 * (torchs.double() - exact).norm() + 1e-3 * exact.norm()


def test_autocast_multiplies_in_its_dtype_like_a_plain_head():
    tensors, labels = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = run("fused", tensors, labels, 11)
        masked = run("masked", tensors, labels, 11)
    torch.testing.assert_close(fused, masked, rtol=1e-3, atol=1e-3)
    assert fused.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"z_loss": -1.0}, "z_loss=-1.0"),
        ({"logit_softcapping": -1.0}, "logit_softcapping=-1.0"),
        ({"reduction": "avg"}, "reduction='avg'"),
    ],
)
def test_impossible_options_are_refused(arguments, said):
    for kind in (MaskedCrossEntropy, ChunkedCrossEntropy, FusedLinearCrossEntropy):
        with pytest.raises(ValueError, match=said):
            kind(**arguments)


def test_two_softcaps_are_refused():
    tensors, labels = problem(torch.float32)
    with pytest.raises(ValueError, match="only one can apply"):
        FusedLinearCrossEntropy(logit_softcapping=2.0)(
            tensors[0], labels, 5, weight=tensors[1], transform=HeadTransform(1.0, 30.0)
        )


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch < 2.13 has no F.linear_cross_entropy")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fused_equals_torchs_own_linear_cross_entropy(smoothing):
    tensors, labels = problem(torch.float32)
    hidden, weight, bias = tensors
    count = int((labels != -100).sum())
    want = F.linear_cross_entropy(
        hidden.reshape(-1, H), weight, labels.reshape(-1), linear_bias=bias, reduction="sum", label_smoothing=smoothing
    )
    got = run("fused", tensors, labels, count, label_smoothing=smoothing)
    torch.testing.assert_close(got, want / count, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(got * count, tensors), torch.autograd.grad(want, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

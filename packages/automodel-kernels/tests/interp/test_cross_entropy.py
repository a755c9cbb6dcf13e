"""Cross-entropy, linear cross-entropy and the vocabulary-parallel statistics in Triton's interpreter."""

import pytest
import torch

from automodel_kernels.backend import announced
from automodel_kernels.ops import cross_entropy, linear_cross_entropy, vocab_parallel_cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [{}, {"softcap": 4.0}, {"z_loss": 1e-2, "label_smoothing": 0.1}, {"softcap": 4.0, "z_loss": 1e-2}]


def labels_for(num, num_classes):
    labels = torch.randint(0, num_classes, (num,))
    if num > 3:
        labels[1], labels[2], labels[3] = 0, num_classes - 1, -100
    return labels


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_is_as_good_as_torch(three_ways, dtype, options):
    logits = (torch.randn(7, 131) * 3).to(dtype)
    labels = labels_for(7, 131)
    results = three_ways(lambda logits: cross_entropy(logits, labels, reduction="none", **options), {"logits": logits})
    results.check()
    results.check_mutations()
    assert results.kernel["dlogits"][3].abs().max() == 0


@pytest.mark.parametrize("num", [0, 1, 5])
@pytest.mark.parametrize("num_classes", [16, 17, 4095, 4097, 9001])
def test_ragged_vocabularies(three_ways, num, num_classes):
    logits = torch.randn(num, num_classes)
    labels = labels_for(num, num_classes)
    three_ways(lambda logits: cross_entropy(logits, labels, reduction="none"), {"logits": logits}).check()


def test_all_ignored_is_zero_even_with_nan_logits():
    logits = torch.full((3, 33), float("nan"), requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 33))


def test_another_ignore_index(three_ways):
    logits, labels = torch.randn(5, 37), torch.tensor([3, 7, 7, 36, 0])
    function = lambda logits: cross_entropy(logits, labels, ignore_index=7, reduction="none")  # noqa: E731
    results = three_ways(function, {"logits": logits})
    results.check()
    assert results.kernel["out0"][1] == 0.0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0] * 6, [float("-inf")] * 17 + [2.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, 17]), reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss[0], torch.logsumexp(logits[0], 0) - logits[0, 1])
    assert torch.isfinite(logits.grad).all()


def test_expanded_and_strided_inputs(three_ways):
    wide = torch.randn(6, 200)
    labels = labels_for(6, 100)
    strided = wide[:, ::2]
    expanded = lambda outputs: [torch.tensor(0.7).expand(outputs[0].shape)]  # noqa: E731
    results = three_ways(
        lambda logits: cross_entropy(logits, labels, reduction="none"), {"logits": strided}, upstream=expanded
    )
    results.check()


def test_rows_beyond_two_to_the_31_elements():
    """The third row starts at 2^31 elements: a 32-bit product would read elsewhere. Only touched pages exist.

    The stride itself fits into 32 bits; a larger one would make every product with it 64 bits wide.
    """
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16)
    logits = storage.as_strided((3, 64), (2**30, 1))
    values = torch.randn(3, 64)
    logits.copy_(values)
    labels = torch.tensor([3, 5, 8])
    got = cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(got, cross_entropy(logits.clone().float(), labels, reduction="none"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS[::2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_cross_entropy_is_as_good_as_torch(three_ways, dtype, options, reduction):
    hidden, weight = torch.randn(9, 24).to(dtype), (torch.randn(131, 24) / 3).to(dtype)
    bias, labels = torch.randn(131).to(dtype), labels_for(9, 131)
    results = three_ways(
        lambda hidden, weight, bias: linear_cross_entropy(
            hidden, weight, labels, bias=bias, reduction=reduction, chunk_rows=4, **options
        ),
        {"hidden": hidden, "weight": weight, "bias": bias},
    )
    results.check()
    results.check_mutations()
    assert "triton" in announced()["linear_cross_entropy"]


def test_label_index_and_frozen_head():
    hidden, weight = torch.randn(9, 24, requires_grad=True), torch.randn(131, 24)
    labels = labels_for(9, 131)
    index = torch.tensor([0, 2, 5, 3, 3])
    kept = torch.full_like(labels, -100)
    kept[index] = labels[index]
    some = linear_cross_entropy(hidden, weight, labels, label_index=index)
    full = linear_cross_entropy(hidden, weight, kept)
    torch.testing.assert_close(some, full)
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (some, full)))


def test_the_forward_may_be_used_twice_and_leaves_its_inputs():
    logits, labels = torch.randn(5, 37, requires_grad=True), labels_for(5, 37)
    before = logits.detach().clone()
    loss = cross_entropy(logits, labels)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    second = torch.autograd.grad(loss, logits)[0]
    assert torch.equal(first, second)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_vocabulary_parallel_on_one_rank(three_ways, dtype):
    logits, labels = torch.randn(6, 67).to(dtype), labels_for(6, 67)
    results = three_ways(
        lambda logits: vocab_parallel_cross_entropy(logits, labels, reduction="none"), {"logits": logits}
    )
    results.check()
    results.check_mutations()

"""The loss classes: a sum over the global label count, 0 when nothing is supervised, wrong input refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from automodel_kernels import TEParallelCrossEntropy, TritonCrossEntropy, TritonLinearCrossEntropy

B, T, H, V = 2, 7, 16, 37


@pytest.fixture
def case():
    hidden = torch.randn(B, T, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    labels = torch.randint(0, V, (B, T))
    labels[0, :3] = -100
    labels[1, 1], labels[1, 2] = 0, V - 1
    return hidden, weight, labels


def expected(hidden, weight, labels, count, transform=lambda logits: logits):
    logits = transform(hidden @ weight.t())
    return F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="sum") / count


def call(loss, hidden, weight, labels, count, **kwargs):
    if loss.takes_hidden_states:
        return loss(hidden, labels, count, weight=weight, **kwargs)
    return loss(hidden @ weight.t(), labels, count, **kwargs)


LOSSES = [TritonCrossEntropy(), TritonLinearCrossEntropy(), TEParallelCrossEntropy()]


@pytest.mark.parametrize("count", [23, torch.tensor(23)], ids=["int", "tensor"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_sum_over_the_global_count(loss, case, count):
    hidden, weight, labels = case
    want = expected(hidden, weight, labels, 23)
    want_grads = torch.autograd.grad(want, (hidden, weight))
    got = call(loss, hidden, weight, labels, count)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (hidden, weight)), want_grads)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_nothing_supervised_is_zero_with_zero_gradients(loss, case):
    hidden, weight, labels = case
    got = call(loss, hidden, weight, torch.full_like(labels, -100), torch.tensor(0))
    assert got.item() == 0.0
    got.backward()
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_label_outside_the_vocabulary_is_refused(loss, case):
    hidden, weight, labels = case
    labels[0, 4] = V
    with pytest.raises(ValueError, match=r"(label 37 is out of range|belongs to no vocabulary shard)"):
        call(loss, hidden, weight, labels, 23)


def test_what_the_model_does_to_its_logits_is_repeated(case):
    hidden, weight, labels = case
    want = expected(hidden, weight, labels, 23, lambda x: 5.0 * torch.tanh(0.25 * x / 5.0))
    want_grads = torch.autograd.grad(want, (hidden, weight))
    transform = SimpleNamespace(scale=0.25, softcap=5.0)
    got = TritonLinearCrossEntropy()(hidden, labels, 23, weight=weight, transform=transform)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (hidden, weight)), want_grads)
    with pytest.raises(ValueError, match=r"softcap=30\.0 while the model caps its logits at 5.0"):
        TritonLinearCrossEntropy(softcap=30.0)(hidden, labels, 23, weight=weight, transform=transform)


def test_label_index_looks_at_nothing_else(case):
    hidden, weight, labels = case
    index = (labels.reshape(-1) != -100).nonzero().squeeze(-1)
    padded = torch.cat((index, torch.zeros(5, dtype=torch.int64)))
    loss = TritonLinearCrossEntropy()
    full, some = (loss(hidden, labels, 23, weight=weight, label_index=i) for i in (None, padded))
    torch.testing.assert_close(some, full)
    torch.testing.assert_close(torch.autograd.grad(some, (hidden, weight)), torch.autograd.grad(full, (hidden, weight)))
    fewer = loss(hidden, labels, 23, weight=weight, label_index=index[1:])
    assert float(fewer) < float(full)
    with pytest.raises(ValueError, match="names a labelled position twice"):
        loss(hidden, labels, 23, weight=weight, label_index=torch.cat((index, index[:1])))
    with pytest.raises(ValueError, match=r"positions must be in \[0, 14\)"):
        loss(hidden, labels, 23, weight=weight, label_index=index + 5)


def test_plain_logits_need_a_group_when_several_processes_run(monkeypatch, case):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    hidden, weight, labels = case
    with pytest.raises(ValueError, match="tp_group is None, the logits are a plain tensor"):
        TEParallelCrossEntropy()(hidden @ weight.t(), labels, 23)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="reduction='mean': it must be one of none, sum"):
        TEParallelCrossEntropy(reduction="mean")
    with pytest.raises(ValueError, match=r"softcap=-1\.0: it must be positive"):
        TritonCrossEntropy(softcap=-1.0)(torch.randn(1, 3), torch.tensor([1]), 1)

import pytest
import torch
import torch.nn.functional as F

from automodel_core.loss import KDLoss, MaskedCrossEntropy, forward_kd_loss, forward_loss, shift_labels


def reference(student, teacher, labels, count, temperature, ratio):
    student, teacher = student.double(), teacher.double()
    total = torch.zeros((), dtype=torch.float64)
    for s, t, label in zip(student.flatten(0, -2), teacher.flatten(0, -2), labels.flatten().tolist(), strict=True):
        if label != -100:
            p, q = (s / temperature).log_softmax(-1), (t / temperature).softmax(-1)
            total = total + ratio * temperature**2 * (q * (q.log() - p)).sum()
            total = total - (1 - ratio) * s.log_softmax(-1)[label]
    return total / count


@pytest.mark.parametrize("temperature, ratio", [(1.0, 0.5), (2.5, 1.0), (4.0, 0.3)])
def test_value_and_gradient_match_float64(temperature, ratio):
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 11, generator=rng).requires_grad_()
    teacher = torch.randn(2, 5, 11, generator=rng)
    labels = torch.tensor([[1, -100, 3, 10, 0], [-100, -100, 2, 5, -100]])
    want = reference(student, teacher, labels, 9, temperature, ratio)
    got = KDLoss(temperature, ratio, chunk_size=2)(student, teacher, labels, 9)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)
    (grad,), (want_grad,) = torch.autograd.grad(got, student), torch.autograd.grad(want, student)
    torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=1e-7)
    assert want_grad.abs().max() > 1e-3


def test_models_give_what_their_logits_give(llama, batch):
    from core_families import build

    teacher = build("gemma2", hidden_size=48).eval()
    shifted, loss_fn = shift_labels(batch), KDLoss(2.0, 0.7, chunk_size=4)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    want = loss_fn(llama(**inputs).logits, teacher(**inputs).logits, shifted["shift_labels"], 14)
    got = forward_kd_loss(llama, teacher, shifted, loss_fn, 14)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    want_grads = torch.autograd.grad(want, list(llama.parameters()))
    for a, b in zip(torch.autograd.grad(got, list(llama.parameters())), want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_ratio_zero_is_cross_entropy(llama, batch):
    shifted = shift_labels(batch)
    got = forward_kd_loss(llama, llama, shifted, KDLoss(3.0, 0.0), 14)
    torch.testing.assert_close(got, forward_loss(llama, shifted, MaskedCrossEntropy(), 14))


def test_nothing_supervised_is_zero_and_connected():
    student = torch.randn(1, 3, 7, requires_grad=True)
    loss = KDLoss()(student, torch.randn(1, 3, 7), torch.full((1, 3), -100), 0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(1, 3, 7))


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="student with 7 logits and a teacher with 8"):
        KDLoss()(torch.randn(1, 3, 7), torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.int64), 1)


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"kd_ratio": 1.5}, {"chunk_size": 0}])
def test_impossible_options_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        KDLoss(**arguments)


def test_softmax_of_the_reference_is_torchs():
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    want = F.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="sum")
    torch.testing.assert_close(reference(a, b, torch.ones(4, dtype=torch.int64), 1, 1.0, 1.0).float(), want)


_FAULTS = {
    "zeros": lambda s, t, y: 0.0 * KDLoss(2.0, 0.6)(s, t, y, 9),
    "labels off by one": lambda s, t, y: KDLoss(2.0, 0.6)(s, t, torch.where(y == -100, y, (y + 1) % 11), 9),
    "the other direction of KL": lambda s, t, y: KDLoss(2.0, 0.6)(t, s, y, 9) + 0.0 * s.sum(),
    "temperature not squared back": lambda s, t, y: KDLoss(1.0, 0.6)(s / 2.0, t / 2.0, y, 9),
    "another ratio": lambda s, t, y: KDLoss(2.0, 0.4)(s, t, y, 9),
    "another denominator": lambda s, t, y: KDLoss(2.0, 0.6)(s, t, y, 10),
    "ignored positions counted": lambda s, t, y: KDLoss(2.0, 0.6)(s, t, y.clamp(min=0), 9),
    "teacher a position late": lambda s, t, y: KDLoss(2.0, 0.6)(s, t.roll(1, 1), y, 9),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(_FAULTS))
def test_the_comparison_with_float64_rejects_faults(fault):
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 11, generator=rng).requires_grad_()
    teacher = torch.randn(2, 5, 11, generator=rng)
    labels = torch.tensor([[1, -100, 3, 10, 0], [-100, -100, 2, 5, -100]])
    want = reference(student, teacher, labels, 9, 2.0, 0.6)
    (want_grad,) = torch.autograd.grad(want, student)
    wrong = _FAULTS[fault](student, teacher, labels)
    (wrong_grad,) = torch.autograd.grad(wrong, student)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong.double(), want, rtol=1e-6, atol=1e-7)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong_grad, want_grad, rtol=1e-5, atol=1e-7)

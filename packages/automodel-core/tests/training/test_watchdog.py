import pytest
import torch

from automodel_core.training import SpikeDetector, StepGuard


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.AdamW(p, lr=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
], ids=["adamw", "fused", "sgd"])  # fmt: skip
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_bad_norm_leaves_everything_as_it_was(make, bad):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, guard = make([weight]), StepGuard()

    def step(value):
        weight.grad = torch.full((3,), value)
        return guard.step(optimizer, weight.grad.norm())

    assert step(1.0) == 0
    before = weight.detach().clone()
    moments = {k: v.clone() for k, v in optimizer.state[weight].items() if isinstance(v, torch.Tensor)}
    assert step(bad) == 1
    assert torch.equal(weight, before)
    for name, value in moments.items():
        assert torch.equal(optimizer.state[weight][name], value), name
    assert step(1.0) == 0
    assert not torch.equal(weight, before)
    assert guard.state_dict() == {"num_skipped": 1}


def test_a_spike_names_its_samples_and_does_not_move_the_window():
    detector = SpikeDetector(window=10, min_steps=5)
    for step, loss in enumerate([2.0, 2.1, 1.9, 2.05, 1.95, 2.0]):
        assert detector.observe(step, loss, [step]) is None
    for _ in range(2):
        spike = detector.observe(6, 9.0, [41, 42])
        assert spike.sample_ids == (41, 42)
        assert "samples 41, 42" in str(spike)
    assert detector.observe(7, 2.05) is None


def test_a_non_finite_loss_is_a_spike_at_once():
    assert SpikeDetector().observe(1, float("nan"), [3]).deviations == float("inf")


def test_a_low_loss_is_no_spike_and_state_survives():
    detector = SpikeDetector(min_steps=2)
    for loss in (2.0, 2.1, 0.1):
        assert detector.observe(0, loss) is None
    other = SpikeDetector(min_steps=2)
    other.load_state_dict(detector.state_dict())
    assert other.observe(0, 50.0) is not None

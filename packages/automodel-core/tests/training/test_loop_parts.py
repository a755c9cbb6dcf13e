"""Noise on embeddings, averages of weights, loss scaling."""

import math

import pytest
import torch

from automodel_core.training import EMA, LossScaler, StepGuard, neftune


def test_noise_has_its_size_and_only_in_training(llama):
    ids = torch.arange(3, 67).reshape(1, 64)
    plain = llama.get_input_embeddings()(ids)
    handle = neftune(llama, noise_alpha=5.0)
    assert torch.equal(llama.eval().get_input_embeddings()(ids), plain)
    noise = (llama.train().get_input_embeddings()(ids) - plain).detach()
    bound = 5.0 / math.sqrt(64 * 32)
    assert noise.abs().max() <= bound * 1.001
    assert noise.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    handle.remove()
    assert torch.equal(llama.get_input_embeddings()(ids), plain)


def test_noise_has_a_generator_of_its_own_whose_state_goes_on(llama):
    ids = torch.arange(3, 67).reshape(1, 64)
    embed = llama.train().get_input_embeddings()
    noise = neftune(llama, noise_alpha=5.0, seed=3)
    before = torch.get_rng_state()
    first, state, second = embed(ids), noise.state_dict(), embed(ids)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    noise.remove()
    again = neftune(llama, noise_alpha=5.0, seed=3)
    assert torch.equal(embed(ids), first)
    again.remove()
    resumed = neftune(llama, noise_alpha=5.0, seed=99)
    resumed.load_state_dict(state)
    assert torch.equal(embed(ids), second)


def test_a_skipped_step_does_not_move_the_average():
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(8.0)
    start = ema.state_dict()["averages"]["weight"].clone()
    ema.update(torch.tensor(1.0))
    assert torch.equal(ema.state_dict()["averages"]["weight"], start)
    ema.update(torch.tensor(0.0))
    torch.testing.assert_close(ema.state_dict()["averages"]["weight"], 0.5 * start + 4.0)


def test_average_in_closed_form_and_put_back():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = EMA(model, decay=0.9)
    for value in (1.0, 2.0):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
    with ema.applied():
        assert model.weight.item() == pytest.approx(0.9 * 0.1 + 0.1 * 2.0)
    assert model.weight.item() == 2.0
    other = EMA(model, decay=0.5)
    other.load_state_dict(ema.state_dict())
    with other.applied():
        assert model.weight.item() == pytest.approx(0.29)


def test_average_of_other_parameters_is_refused():
    state = EMA(torch.nn.Linear(1, 1), decay=0.9).state_dict()
    with pytest.raises(ValueError, match="EMA state of other parameters"):
        EMA(torch.nn.Linear(1, 1, bias=False), decay=0.9).load_state_dict(state)


def test_scaled_gradients_come_back_and_overflow_halves_the_scale():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer, guard = torch.optim.SGD([weight], lr=0.1), StepGuard()
    scaler = LossScaler(init_scale=8.0, growth_interval=2)
    scales = []
    for factor in (3.0, 3.0, float("inf"), 3.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_([weight])
        if math.isfinite(factor):
            assert weight.grad.item() == 3.0
        scaler.update(guard.step(optimizer, weight.grad.norm()))
        scales.append(scaler.state_dict()["scale"])
    assert scales == [8.0, 16.0, 8.0, 8.0]
    assert weight.item() == pytest.approx(1.0 - 3 * 0.3)


def test_the_scale_stops_at_its_minimum_and_says_so():
    scaler = LossScaler(init_scale=4.0, min_scale=2.0)
    assert not scaler.exhausted
    for _ in range(3):
        scaler.update(torch.tensor(1.0))
    assert scaler.state_dict()["scale"] == 2.0
    assert scaler.exhausted


@pytest.mark.parametrize("make, said", [
    (lambda m: neftune(m, noise_alpha=0.0), "noise_alpha=0.0"),
    (lambda m: EMA(m, decay=1.0), "decay=1.0"),
    (lambda m: LossScaler(init_scale=0.0), "init_scale=0.0"),
    (lambda m: LossScaler(init_scale=1.0, min_scale=2.0), "min_scale at most init_scale"),
])  # fmt: skip
def test_impossible_settings_are_refused(llama, make, said):
    with pytest.raises(ValueError, match=said):
        make(llama)

import random

import numpy as np
import pytest
import torch

from automodel_core.training import StatefulRNG


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_constructing_seeds_every_generator():
    StatefulRNG(7)
    first = draw()
    StatefulRNG(7)
    assert draw() == first
    StatefulRNG(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_state_goes_on_where_it_was():
    rng = StatefulRNG(7)
    draw()
    state = rng.state_dict()
    want = draw()
    draw()
    rng.load_state_dict(state)
    assert draw() == want


def test_ranks_differ_only_when_asked(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert (StatefulRNG(7).seed, StatefulRNG(7, ranked=True).seed) == (7, 10)


def test_as_a_context_it_puts_the_state_back():
    StatefulRNG(7)
    want = draw()
    StatefulRNG(7)
    with StatefulRNG(1):
        draw()
    assert draw() == want


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed=-1"):
        StatefulRNG(-1)

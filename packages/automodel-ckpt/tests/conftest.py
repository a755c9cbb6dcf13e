"""Small models and states that the tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn


def _build(seed: int = 0, width: int = 8) -> SimpleNamespace:
    """A model with a tied weight and a buffer, an optimizer that has stepped, and plain state."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(11, width), "norm": nn.BatchNorm1d(width), "mid": nn.Linear(width, 5)})
    model["head"] = nn.Linear(width, 11, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model["head"].weight = model["embed"].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()
    train = {"step": seed, "rng": torch.randn(3, generator=generator), "note": ("a", b"\x00", None, float("inf"))}
    return SimpleNamespace(model=model, optim=optimizer, train=train)


@pytest.fixture(scope="session")
def build():
    return _build


@pytest.fixture
def fast_path(tmp_path):
    """A directory in memory where there is one: fault campaigns call fsync thousands of times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="automodel-ckpt-") as folder:
        yield Path(folder)


@pytest.fixture
def state_of():
    """The mapping to save or load of what `build` returns."""
    return lambda made: {"model": made.model, "optim": made.optim, "train": made.train}


@pytest.fixture
def equal():
    """Whether two results of `build` hold the same bits."""

    def compare(a: SimpleNamespace, b: SimpleNamespace) -> bool:
        tensors = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
        moments = [
            (s, t)
            for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True)
            for s, t in zip(a.optim.state[p].values(), b.optim.state[q].values(), strict=True)
        ]
        settings = a.optim.param_groups[0]["lr"] == b.optim.param_groups[0]["lr"]
        plain = a.train["note"] == b.train["note"] and a.train["step"] == b.train["step"]
        same = all(torch.equal(s, t) and s.dtype == t.dtype for s, t in [*tensors, *moments])
        return same and settings and plain and torch.equal(a.train["rng"], b.train["rng"])

    return compare

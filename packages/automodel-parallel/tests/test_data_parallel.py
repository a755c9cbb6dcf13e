"""DDP, FSDP2 and HSDP against a plain loop in one process."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automodel_parallel.build import build_manager
from automodel_parallel.init import DistInfo

VOCAB, HIDDEN, ROWS, LENGTH, WINDOWS = 32, 16, 8, 6, 3
LAYOUTS = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2_deferred": {"strategy": "fsdp2", "defer_gradient_sync": True},
    "fsdp2_zero2": {"strategy": "fsdp2", "reshard_after_forward": False, "forward_prefetch": 1, "backward_prefetch": 1},
    "hsdp_pure_replicas": {"strategy": "fsdp2", "dp_replicate_size": 2},
}


class TinyLM(nn.Module):
    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        if frozen:
            self.embed.requires_grad_(False)
            self.layers[1].requires_grad_(False)

    def forward(self, *, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)


def windows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(WINDOWS):
        ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
        labels = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
        for row in range(ROWS):  # ragged, and rows 0-3 of a window hold far fewer labels than the rest
            labels[row, : (5 if row < 4 else 1)] = -100
        made.append((ids, labels))
    return made


def sum_loss(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count


def train(context, frozen: bool) -> dict:
    torch.manual_seed(0)
    model = TinyLM(frozen)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    report = None
    if context is not None:
        model, report = context.parallelize(model)
    inner = context.unwrap(model) if context else model
    optimizer = torch.optim.SGD([p for p in inner.parameters() if p.requires_grad], lr=0.5)
    losses, norms = [], []
    for ids, labels in windows():
        rows = slice(None)
        if context is not None:
            share = ROWS // context.dp_size
            rows = slice(context.dp_rank * share, (context.dp_rank + 1) * share)
        ids, labels = ids[rows], labels[rows]
        count = (labels != -100).sum()
        if context is not None:
            count = context.sum_over_data(count)
        total = torch.zeros(())
        halves = list(zip(ids.chunk(2), labels.chunk(2)))
        for i, (a, b) in enumerate(halves):
            sync = context.gradient_sync(model, enabled=i == 1) if context else contextlib.nullcontext()
            with sync:
                loss = sum_loss(model, a, b, count)
                loss.backward()
            total += loss.detach()
        if context is not None:
            total = context.sum_over_loss_ranks(total)
            norms.append(float(context.clip_grad_norm(model, 0.25)))
        else:
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)))
        losses.append(float(total))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    weights = {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in inner.named_parameters()}
    moved = {name: (weights[name] - before[name]).numpy() for name in weights}
    return {"losses": losses, "norms": norms, "moved": moved, "report": str(report)}


def rank_cells(info: DistInfo) -> dict:
    return {
        (name, frozen): train(build_manager(**layout).setup(info), frozen)
        for name, layout in LAYOUTS.items()
        for frozen in (False, True)
    }


@pytest.fixture(scope="module")
def two_ranks(ranks) -> list[dict]:
    return ranks.run(rank_cells, 2)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_train_like_one_process(two_ranks, layout: str, frozen: bool) -> None:
    expected = train(None, frozen)
    assert max(expected["norms"]) > 0.25, "clipping must be active"
    for rank in two_ranks:
        cell = rank[layout, frozen]
        assert cell["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert cell["norms"] == pytest.approx(expected["norms"], rel=1e-5)
        for name, moved in expected["moved"].items():
            moved, got = torch.from_numpy(moved), torch.from_numpy(cell["moved"][name])
            if frozen and ("embed" in name or "layers.1" in name):
                assert not got.any()
            else:
                assert moved.norm() > 0
                assert (got - moved).norm() / moved.norm() <= 1e-4, name


def test_report_says_what_was_done(two_ranks) -> None:
    assert "3 blocks and the root sharded over 2 ranks" in two_ranks[0]["fsdp2", False]["report"]
    assert "gradients of 5 parameters summed over 2 ranks" in two_ranks[0]["ddp", True]["report"]

"""One cell of the parity table: a model trained three steps under a layout, and by a plain loop in one process."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import parity_models
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_NORM = 0.5
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "DDP": {"strategy": "ddp"},
        "FSDP2": {},
        "HSDP": {"dp_replicate_size": 2},
        "TP": {"tp_size": 2},
        "TP+SP": {"tp_size": 2, "sequence_parallel": True},
        "CP": {"cp_size": 2},
        "CP+packed": {"cp_size": 2},
        "CP ring": {"cp_size": 2, "cp_method": "ring"},
        "CP ring+packed": {"cp_size": 2, "cp_method": "ring"},
        "EP": {"ep_size": 2},
        "PP": {"pp_size": 2},
        "PP interleaved": {"pp_size": 2, "pp_schedule": "interleaved1f1b", "stages_per_rank": 2},
        "PP zero bubble": {"pp_size": 2, "pp_schedule": "zero_bubble", "stages_per_rank": 2},
    },
    4: {
        "HSDP": {"dp_replicate_size": 2},
        "FSDP2xTP": {"tp_size": 2},
        "FSDP2xTP+SP": {"tp_size": 2, "sequence_parallel": True},
        "FSDP2xCP": {"cp_size": 2},
        "CP ring": {"cp_size": 4, "cp_method": "ring"},
        "EP": {"ep_size": 4},
        "EPxTP": {"ep_size": 2, "tp_size": 2},
        "FSDP2xPP": {"pp_size": 2},
        "TPxPP": {"tp_size": 2, "pp_size": 2},
    },
}
"""Settings of each layout by world size; the strategy is fsdp2 unless it says otherwise."""


@dataclass(frozen=True)
class Cell:
    """What is trained, and how."""

    world_size: int
    layout: str
    model: str
    lora: bool
    optimizer: str = "sgd"
    mutation: str | None = None
    """A deliberate fault in the ranks, which the comparison must notice."""

    @property
    def packed(self) -> bool:
        return "packed" in self.layout

    @property
    def label(self) -> str:
        kind = "LoRA" if self.lora else "full"
        return f"{self.layout} x{self.world_size} {self.model} {kind} {self.optimizer}"


@dataclass
class Trained:
    """What a run leaves behind."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


def applies(layout: str, model: str) -> bool:
    """Layouts that a model has no use for, or that are refused with a message."""
    if model == "llava" and "packed" in layout:
        return False
    if layout.startswith("EP"):
        return model == "mixtral"
    return True


def build(cell: Cell) -> nn.Module:
    """The model of a cell, with LoRA whose B is not zero, so that every adapter tensor gets a gradient."""
    model = parity_models.build_model(cell.model)
    model.train()
    if cell.lora:
        from automodel_core.peft import PeftConfig, apply_lora

        targets = ["*.q_proj", "*.v_proj", "*.o_proj"]
        if cell.model != "mixtral":
            targets += ["*.down_proj"]
        exclude = {"exclude_modules": ["*vision*"]} if cell.model == "llava" else {}
        apply_lora(model, PeftConfig(target_modules=targets, dim=4, alpha=8, **exclude))
        generator = torch.Generator().manual_seed(7)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data.normal_(0, 0.2, generator=generator)
    return model


def optimizer_for(model: nn.Module, name: str) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.5)
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4, weight_decay=0.01)


def train_plain(cell: Cell) -> Trained:
    """The reference: a loop that anyone would write, in one process."""
    model, run = build(cell), Trained()
    run.before = weights_of(model)
    optimizer = optimizer_for(model, cell.optimizer)
    for rows in parity_models.windows(cell.model, packed=cell.packed):
        halves = [parity_models.collate(rows[::2]), parity_models.collate(rows[1::2])]
        count = sum((half["shift_labels"] != -100).sum() for half in halves)
        total = 0.0
        for half in halves:
            labels = half.pop("shift_labels")
            logits = model(**half, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += loss.item()
        run.losses.append(total)
        run.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        optimizer.step()
        optimizer.zero_grad()
    run.after = weights_of(model)
    return run


def train_parallel(cell: Cell, info: Any) -> Trained:
    """The same training under the cell's layout and with its fault, as a recipe does it."""
    with mutated(cell.mutation):
        return _train_parallel(cell, info)


def _train_parallel(cell: Cell, info: Any) -> Trained:
    from automodel_parallel import build_manager

    settings = {"strategy": "fsdp2", **LAYOUTS[cell.world_size][cell.layout]}
    context = build_manager(settings.pop("strategy"), **settings).setup(info)
    model, run = build(cell), Trained()
    model, _ = context.parallelize(model)
    plain = context.unwrap(model)
    run.before = weights_of(plain)
    optimizer = optimizer_for(plain, cell.optimizer)
    for rows in parity_models.windows(cell.model, packed=cell.packed):
        loss, norm = _step(context, model, rows)
        run.losses.append(loss)
        run.norms.append(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.after = weights_of(plain)
    return run


def _step(context: Any, model: nn.Module, rows: list[dict[str, Tensor]]) -> tuple[float, float]:
    from automodel_core.loss import MaskedCrossEntropy, forward_loss

    share = len(rows) // context.dp_size
    mine = rows[context.dp_rank * share : (context.dp_rank + 1) * share]
    batches = [parity_models.collate(mine[i::2]) for i in range(2)]
    count = context.sum_over_data(sum((batch["shift_labels"] != -100).sum() for batch in batches))
    loss_fn = MaskedCrossEntropy()
    if context.pipeline is not None:
        total = context.pipeline.step(batches, loss_fn, count).sum()
    else:
        total = torch.zeros(())
        for i, batch in enumerate(batches):
            batch = context.shard_sequence(batch)
            with context.gradient_sync(model, enabled=i == 1):
                loss = forward_loss(model, batch, loss_fn, count)
                loss.backward()
            total += loss.detach()
    norm = context.clip_grad_norm(model, MAX_NORM)
    return float(context.sum_over_loss_ranks(total)), float(norm)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Whole copies of the trainable parameters."""
    return {
        name: (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@contextlib.contextmanager
def mutated(name: str | None) -> Any:
    """Break the ranks on purpose."""
    from automodel_parallel import context as context_module
    from automodel_parallel import sharding

    saved = (sharding.sum_instead_of_mean, context_module.clip_grad_norm, context_module.ParallelContext.sum_over_data)
    original_clip = context_module.clip_grad_norm
    try:
        if name == "mean instead of sum":
            sharding.sum_instead_of_mean = lambda model: None
        elif name == "skipped clip":
            context_module.clip_grad_norm = lambda parameters, max_norm, **rest: original_clip(parameters, None, **rest)
        elif name == "tokens of one rank uncounted":
            context_module.ParallelContext.sum_over_data = lambda self, value: saved[2](
                self, value if self.dp_rank == 0 else value * 0
            )
        elif name is not None:
            raise ValueError(name)
        yield
    finally:
        sharding.sum_instead_of_mean, context_module.clip_grad_norm, context_module.ParallelContext.sum_over_data = (
            saved
        )


@dataclass(frozen=True)
class Residuals:
    """How far a cell is from one process, relatively; ``problem`` says what is beyond the limits."""

    loss: float
    norm: float
    change: float
    problem: str = ""


def compare(expected: Trained, ranks: list[Trained]) -> Residuals:
    """Losses and norms to 1e-5, the change of each trained tensor to 1e-4, and every rank the same."""
    loss = max(_relative(rank.losses, expected.losses) for rank in ranks)
    norm = max(_relative(rank.norms, expected.norms) for rank in ranks)
    change, problems = 0.0, []
    names = {name for rank in ranks for name in rank.after}
    if names != set(expected.after):
        problems.append(f"parameters differ: {sorted(names ^ set(expected.after))[:3]}")
    for name in sorted(names & set(expected.after)):
        moved = expected.after[name] - expected.before[name]
        if not moved.norm() > 0:
            problems.append(f"{name} never moved")
            continue
        for rank in ranks:
            if name in rank.after:
                distance = float(((rank.after[name] - rank.before[name]) - moved).norm() / moved.norm())
                if not distance <= 1e-4:
                    problems.append(f"{name} off by {distance:.1e}")
                change = max(change, distance)
    if max(expected.norms) <= MAX_NORM:
        problems.append("clipping was not active")
    if not loss <= 1e-5:
        problems.append(f"loss off by {loss:.1e}")
    if not norm <= 1e-5:
        problems.append(f"norm off by {norm:.1e}")
    return Residuals(loss, norm, change, "; ".join(problems[-3:]))


def _relative(got: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(got, expected, strict=True))

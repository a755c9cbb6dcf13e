"""Every layout trains like one process: losses, gradient norms and weight changes of three steps.

Rows are ragged and partly masked, with far more labels on some ranks than on others; two micro-batches accumulate and
clipping is active. Each test starts one group of processes, runs its cells there and prints one table.
"""

from __future__ import annotations

import functools

import pytest
from parity_cells import LAYOUTS, Cell, Residuals, Trained, applies, compare, train_parallel, train_plain
from parity_models import FAMILIES, MODELS

from rank_group import run_in_group

MUTATIONS = ("mean instead of sum", "tokens of one rank uncounted", "skipped clip")


def cells_for(world_size: int, layouts, models, optimizers=("sgd",), loras=(False, True)) -> list[Cell]:
    return [
        Cell(world_size, layout, model, lora, optimizer)
        for layout in layouts
        for model in models
        if applies(layout, model)
        for lora in loras
        for optimizer in optimizers
    ]


@functools.cache
def _reference(model: str, lora: bool, optimizer: str, packed: bool) -> Trained:
    return train_plain(Cell(1, "packed" if packed else "plain", model, lora, optimizer))


def check(cells: list[Cell], capsys) -> None:
    rows: list[tuple[Cell, Residuals]] = []
    for cell, outcome in run_in_group(cells[0].world_size, train_parallel, cells):
        if isinstance(outcome, str):
            pytest.fail(f"{cell.label}\n{outcome}")
        rows.append((cell, compare(_reference(cell.model, cell.lora, cell.optimizer, cell.packed), outcome)))
    with capsys.disabled():
        print(f"\n{'cell':46} {'loss':>8} {'norm':>8} {'change':>8}")
        for cell, row in rows:
            print(f"{cell.label:46} {row.loss:8.0e} {row.norm:8.0e} {row.change:8.0e} {row.problem}")
    assert len(rows) == len(cells)
    assert not [f"{cell.label}: {row.problem}" for cell, row in rows if row.problem]


def test_quick(capsys) -> None:
    cells = cells_for(2, LAYOUTS[2], ["llama"], loras=(True,)) + cells_for(
        2, ["FSDP2", "TP+SP"], ["gemma2"], loras=(False,)
    )
    check(cells, capsys)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_reductions_are_noticed(mutation: str) -> None:
    cell = Cell(2, "FSDP2", "llama", False, mutation=mutation)
    [(_, ranks)] = list(run_in_group(2, train_parallel, [cell]))
    assert not isinstance(ranks, str), ranks
    residuals = compare(_reference("llama", False, "sgd", False), ranks)
    assert residuals.problem
    assert max(residuals.change, residuals.loss, residuals.norm) > 1e-2


@pytest.mark.more
@pytest.mark.parametrize("world_size", sorted(LAYOUTS))
def test_llama_under_every_layout(world_size: int, capsys) -> None:
    check(cells_for(world_size, LAYOUTS[world_size], ["llama"]), capsys)


@pytest.mark.more
def test_other_families(capsys) -> None:
    models = [model for model in MODELS if model != "llama"]
    check(cells_for(2, LAYOUTS[2], models, optimizers=("adamw",), loras=(False,)), capsys)


@pytest.mark.more
def test_tensor_parallel_plans_of_further_families(capsys) -> None:
    check(cells_for(2, ["TP"], sorted(FAMILIES), loras=(False,)), capsys)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("world_size", sorted(LAYOUTS))
def test_whole_table(world_size: int, model: str, capsys) -> None:
    check(cells_for(world_size, LAYOUTS[world_size], [model], optimizers=("sgd", "adamw")), capsys)

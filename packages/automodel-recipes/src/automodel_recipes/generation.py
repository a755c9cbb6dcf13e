"""Generated answers during a run: exact match over validation rows, samples on the screen and on disk."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from automodel_recipes.loggers.console import one_line
from automodel_recipes.loggers.jsonl import JsonlLogger

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.exact_match import GeneratedAnswer


def measure_exact_match(r: "BaseRecipe", *, moment: str) -> float:
    """Share of validation rows whose greedy answer equals the reference.

    Rows are dealt to the data ranks; the first few answers are shown, all of rank 0 are appended to ``samples.jsonl``.

    Args:
        r: a recipe after ``setup`` with ``eval_rows``.
        moment: ``"start"`` or ``"end"``, recorded with each sample.
    """
    section = r.config.get("evaluation")
    answers = _answers(r, r.eval_rows[: section.get("num_rows", len(r.eval_rows))])
    right = torch.tensor([sum(a.is_exact for a in answers), len(answers)], device=r.device)
    num_exact, num_rows = r.parallel.sum_over_data(right).tolist()
    share = num_exact / max(num_rows, 1)
    step = r.step_scheduler.step
    _write(r, answers, moment=moment)
    if moment == "end":
        for answer in answers[: section.get("num_samples", 3)]:
            r.console.sample(one_line(answer.prompt), answer.reference, answer.generated)
    r.records.event("exact_match", moment=moment, exact_match=share, num_rows=num_rows)
    r.console.fact("check", f"exact match at step {step}: {num_exact} of {num_rows} rows ({100 * share:.1f} %)")
    return share


def write_step_samples(r: "BaseRecipe", num_rows: int) -> None:
    """Append the greedy answers to the first ``num_rows`` validation rows to ``samples.jsonl``."""
    rows = r.eval_rows[:num_rows]
    if len(rows):
        _write(r, _answers(r, rows), moment="step")


def _answers(r: "BaseRecipe", rows: Sequence[Any]) -> "list[GeneratedAnswer]":
    """This rank's answers: row 0, row ``dp_size``, ... on data rank 0."""
    section = r.config.get("evaluation")
    mine = [rows[i] for i in range(r.parallel.dp_rank, len(rows), r.parallel.dp_size)]
    # As many rows on every rank, so that all of them poll for a stop, and run sharded layers, equally often.
    share_size = -(-len(rows) // r.parallel.dp_size)
    padded = mine + [rows[0]] * (share_size - len(mine))
    answers = r.generate_answers(
        padded, max_new_tokens=section.get("max_new_tokens", 64), batch_size=section.get("batch_size", 64)
    )
    return answers[: len(mine)]


def _write(r: "BaseRecipe", answers: "Sequence[GeneratedAnswer]", *, moment: str) -> None:
    if not r.parallel.is_main:
        return
    samples = JsonlLogger(r.run_dir.path / "samples.jsonl")
    for answer in answers:
        row: dict = {"prompt": answer.prompt, "reference": answer.reference, "generated": answer.generated}
        if answer.images:
            row["images"] = list(answer.images)
        samples.log("sample", {"step": r.step_scheduler.step, "moment": moment, **row, "exact": answer.is_exact})
    samples.close()

"""The numbers of ``eval``: every metric of every set, and exact match of generated answers."""

import math
from pathlib import Path
from typing import Any

from automodel_recipes.errors import UnusableInputError


def scores(recipe: Any, *, exact_match: bool, num_rows: int | None, samples: Path | None = None) -> dict[str, Any]:
    """Measure a recipe from `evaluation.subject`.

    Args:
        recipe: with a model and validation sets.
        exact_match: also generate answers to rows of ``validation_dataset`` and compare them with the reference.
        num_rows: how many of them; all by default.
        samples: a file that gets the answers, one JSON object a line.

    Returns: ``{set: {loss, num_label_tokens, perplexity, ...}}``, and ``exact_match`` with ``num_rows`` under ``val``.
    """
    found: dict[str, Any] = {
        name: {"loss": metrics.loss, "num_label_tokens": metrics.num_label_tokens, **_finite(metrics.extra())}
        for name, metrics in recipe.evaluate().items()
    }
    if exact_match:
        found.setdefault("val", {}).update(_exact_match(recipe, num_rows, samples))
    return found


def _exact_match(recipe: Any, num_rows: int | None, samples: Path | None) -> dict[str, Any]:
    from automodel_recipes.loggers.jsonl import JsonlLogger

    rows = recipe.eval_rows[: num_rows or len(recipe.eval_rows)]
    if not len(rows):
        raise UnusableInputError(
            "exact match is measured on validation_dataset, and the configuration has only named sets. Name one of "
            "them validation_dataset."
        )
    section = recipe.config.get("evaluation")
    keys = {} if section is None else {k: section.get(k) for k in ("max_new_tokens", "batch_size") if k in section}
    answers = recipe.generate_answers(rows, **keys)
    if samples is not None:
        log = JsonlLogger(samples)
        for answer in answers:
            row = {"prompt": answer.prompt, "reference": answer.reference, "generated": answer.generated}
            log.log("sample", {**row, "exact": answer.is_exact})
        log.close()
    return {"exact_match": sum(answer.is_exact for answer in answers) / len(answers), "num_rows": len(answers)}


def _finite(values: dict[str, float]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: value if math.isfinite(value) else str(value) for key, value in values.items()}

"""The images behind generated answers, kept beside them in the run directory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from automodel_recipes.exact_match import GeneratedAnswer

FOLDER = "samples"
_MOST_ROWS, _LONGEST_SIDE = 16, 512


def with_pictures(
    answers: Sequence[GeneratedAnswer], rows: Sequence[Any], dataset: Any, run_path: Path
) -> list[GeneratedAnswer]:
    """The answers, the first sixteen with their rows' images as PNG files under ``samples/`` of the run.

    Args:
        answers: one for each of ``rows``.
        rows: rows of `answers.LazyRows`, which carry their ``number``.
        dataset: the `VLMDataset` that the rows are of.
        run_path: the run's directory; ``GeneratedAnswer.images`` are relative to it.
    """
    kept = [replace(a, images=_saved(dataset, row["number"], run_path)) for a, row in zip(answers[:_MOST_ROWS], rows)]
    return [*kept, *answers[_MOST_ROWS:]]


def _saved(dataset: Any, number: int, run_path: Path) -> tuple[str, ...]:
    names = []
    for i, picture in enumerate(dataset.pictures(number)):
        name = f"{FOLDER}/row-{number}-{i}.png"
        if not (run_path / name).exists():
            (run_path / FOLDER).mkdir(exist_ok=True)
            picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            picture.save(run_path / name, optimize=True)
        names.append(name)
    return tuple(names)

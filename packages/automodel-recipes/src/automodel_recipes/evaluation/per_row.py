"""Rank the rows of a validation set by their own loss: mislabelled ones stand first, doubles are pointed out."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from automodel_recipes.batches import sample_ids, to_device
from automodel_recipes.evaluate import eval_mode
from automodel_recipes.token_accuracy import counting

IGNORE_INDEX = -100
_EXCERPT = 240


@dataclass(frozen=True)
class RowScore:
    """One row by itself."""

    set: str
    row: int
    """Its number in the set, from 0."""
    loss: float
    """Per supervised token (nats)."""
    num_label_tokens: int
    token_accuracy: float | None
    prompt: str
    answer: str
    note: str = ""
    """``same as row N``, or ``same prompt as row N, other answer``."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        return values if math.isfinite(self.loss) else {**values, "loss": str(self.loss)}


def rank_rows(recipe: Any) -> list[RowScore]:
    """Every row of every validation set, the worst first; rows without supervised tokens are left out.

    Args:
        recipe: from `evaluation.subject`, on one process.
    """
    scores = []
    for name, loader in recipe.eval_loaders.items():
        scores += _with_notes(list(_score(recipe, name, loader)))
    return sorted(scores, key=lambda score: -score.loss if math.isfinite(score.loss) else -math.inf)


@torch.no_grad()
def _score(recipe: Any, name: str, loader: Any) -> Iterator[tuple[RowScore, tuple, tuple[int, ...]]]:
    """Scores with what was asked, media included, and the ids of the answer."""
    one = torch.ones((), dtype=torch.int64, device=recipe.device)
    with eval_mode(recipe.model):
        for batch in loader.row_by_row():
            prepared = recipe.prepare(to_device(batch, recipe.device))
            tokens = int(recipe.count_targets([prepared]))
            if not tokens:
                continue
            with counting(recipe) as counter:
                loss = float(recipe.forward_loss(prepared, one)) / tokens
            prompt, answer = _split(batch)
            right = None if counter is None else int(counter.correct) / tokens
            texts = (_text(recipe, prompt)[-_EXCERPT:], _text(recipe, answer)[:_EXCERPT])
            yield RowScore(name, sample_ids([batch])[0], loss, tokens, right, *texts), (*prompt, *_media(batch)), answer


def _split(batch: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that are not padding before the first label, and the labels."""
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    if len(labels) != len(ids):  # a class a row
        return tuple(ids), tuple(labels)
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    return tuple(ids[:first]), tuple(label for label in labels if label != IGNORE_INDEX)


def _media(batch: dict[str, Any]) -> tuple[bytes, ...]:
    """Digests of pixels and sounds: the only tensors of a batch that are not whole numbers."""
    floats = (value for _, value in sorted(batch.items()) if torch.is_tensor(value) and value.is_floating_point())
    return tuple(hashlib.sha256(value.contiguous().numpy().tobytes()).digest() for value in floats)


def _text(recipe: Any, ids: tuple[int, ...]) -> str:
    return str(recipe.tokenizer.decode(list(ids), skip_special_tokens=True))


def _with_notes(scored: list[tuple[RowScore, tuple, tuple[int, ...]]]) -> list[RowScore]:
    """Point out rows that stand twice, and prompts that are answered in two ways."""
    first_of: dict[tuple, int] = {}
    answers: dict[tuple, dict[tuple, int]] = defaultdict(dict)
    noted = []
    for score, prompt, answer in scored:
        note = ""
        if (prompt, answer) in first_of:
            note = f"same as row {first_of[prompt, answer]}"
        elif answers[prompt]:
            note = f"same prompt as row {next(iter(answers[prompt].values()))}, other answer"
        first_of.setdefault((prompt, answer), score.row)
        answers[prompt].setdefault(answer, score.row)
        noted.append(replace(score, note=note))
    return noted

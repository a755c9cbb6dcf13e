"""Greedy answers of a vision-language model to validation rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from automodel_recipes.batches import batched
from automodel_recipes.decoding import greedy
from automodel_recipes.evaluate import eval_mode
from automodel_recipes.exact_match import GeneratedAnswer

_NOT_COLUMNS = ("input_ids", "labels", "features", "media_kinds", "name", "number", "sample_id")


class LazyRows(Sequence):
    """Rows that are decoded when asked for, with their ``number``; a slice stays lazy."""

    def __init__(self, rows: Any, numbers: range | None = None) -> None:
        self._rows = rows
        self._numbers = range(len(rows)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyRows(self._rows, self._numbers[index])
        number = self._numbers[index]
        return {**self._rows[number], "number": number}

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def generate_vlm_answers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    adapter: Any,
    device: torch.device,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    parallel: Any = None,
    poll: Callable[[], None] = lambda: None,
) -> list[GeneratedAnswer]:
    """As ``exact_match.generate_answers``, with each row's media.

    Args:
        rows: encoded rows with ``features``; the prompt, which holds all media, ends where the first label begins.
        adapter: the family of the model's processor.

    Raises: ValueError: a row without a prompt or an answer.
    """
    answers = []
    with eval_mode(model), torch.no_grad():
        for chunk in batched(rows, batch_size):
            poll()
            cuts = [_prompt_length(row) for row in chunk]
            references = [[label for label in row["labels"] if label != -100] for row in chunk]
            stops = {reference[-1] for reference in references} & set(tokenizer.all_special_ids)
            stops |= {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
            inputs = _left_padded(chunk, cuts, adapter, pad_id=min(stops, default=0))
            outputs = greedy(
                model,
                {key: value.to(device) for key, value in inputs.items()},
                max_new_tokens=max_new_tokens,
                stop_ids=sorted(stops),
                pad_id=min(stops, default=0),
                parallel=parallel,
            )
            for row, cut, reference, generated in zip(chunk, cuts, references, outputs, strict=True):
                texts = (row["input_ids"][:cut], reference, generated)
                answers.append(GeneratedAnswer(*(tokenizer.decode(ids, skip_special_tokens=True) for ids in texts)))
    return answers


def _prompt_length(row: dict[str, Any]) -> int:
    first = next((i for i, label in enumerate(row["labels"]) if label != -100), 0)
    if not first:
        raise ValueError(f"row {row.get('name')}: exact match needs a prompt followed by an answer. Check the mask.")
    return first


def _left_padded(
    rows: Sequence[dict[str, Any]], cuts: Sequence[int], adapter: Any, *, pad_id: int
) -> dict[str, torch.Tensor]:
    width = max(cuts)
    columns = ["input_ids", *(key for key in rows[0] if key not in _NOT_COLUMNS)]
    inputs = {
        key: torch.tensor(
            [[pad_id if key == "input_ids" else 0] * (width - cut) + row[key][:cut] for row, cut in zip(rows, cuts)]
        )
        for key in columns
    }
    inputs["attention_mask"] = torch.tensor([[0] * (width - cut) + [1] * cut for cut in cuts])
    features = [row["features"] for row in rows if row["features"]]
    return {**inputs, **(adapter.stack(features) if features else {})}

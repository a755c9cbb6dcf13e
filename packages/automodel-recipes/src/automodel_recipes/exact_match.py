"""Generate the answers of validation rows greedily and compare them with the reference text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from automodel_recipes.batches import batched
from automodel_recipes.decoding import greedy
from automodel_recipes.evaluate import eval_mode


@dataclass(frozen=True)
class GeneratedAnswer:
    """One row's prompt, reference and generated text, without special tokens."""

    prompt: str
    reference: str
    generated: str
    images: tuple[str, ...] = ()
    """Files of the prompt's images, relative to the run's directory."""

    @property
    def is_exact(self) -> bool:
        """Whether the generated text equals the reference, outer white space aside."""
        return self.generated.strip() == self.reference.strip()


@dataclass(frozen=True)
class _Task:
    prompt_ids: list[int]
    reference_ids: list[int]


def generate_answers(
    model: torch.nn.Module,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    device: torch.device,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    parallel: Any = None,
    poll: Callable[[], None] = lambda: None,
) -> list[GeneratedAnswer]:
    """Greedy answers for rows whose labels mark one answer.

    Args:
        model: a Hugging Face model with ``generate``.
        tokenizer: its tokenizer.
        rows: ``{"input_ids": list[int], "labels": list[int]}``; the prompt ends where the first label begins.
        max_new_tokens: cap on generated tokens.
        batch_size: rows decoded together, shortest prompts first.
        parallel: the parallel context of a model that is spread over ranks: all of them must call, with as many rows.
        poll: called before each group of rows; may raise to break off.

    Returns: one answer a row, in the order of the rows.
    """
    tasks = [_split(row) for row in rows]
    order = sorted(range(len(tasks)), key=lambda i: len(tasks[i].prompt_ids))
    answers: list[GeneratedAnswer | None] = [None] * len(tasks)
    stop_ids = _stop_ids(tokenizer, tasks)
    pad_id = stop_ids[0] if stop_ids else 0
    with eval_mode(model), torch.no_grad():
        for chunk in batched(order, batch_size):
            poll()
            outputs = greedy(
                model,
                _left_padded([tasks[i].prompt_ids for i in chunk], pad_id, device),
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                pad_id=pad_id,
                parallel=parallel,
            )
            for i, output in zip(chunk, outputs, strict=True):
                answers[i] = GeneratedAnswer(
                    tokenizer.decode(tasks[i].prompt_ids, skip_special_tokens=True),
                    tokenizer.decode(tasks[i].reference_ids, skip_special_tokens=True),
                    tokenizer.decode(output, skip_special_tokens=True),
                )
    return [answer for answer in answers if answer is not None]


def _split(row: dict[str, Any]) -> _Task:
    labels = list(row["labels"])
    first = next((i for i, label in enumerate(labels) if label != -100), None)
    if not first:
        raise ValueError(
            "exact match needs rows with a prompt followed by an answer; this one "
            + ("has no supervised token." if first is None else "is supervised from its first token.")
            + " Set evaluation.exact_match=false, or mask the prompt."
        )
    return _Task(list(row["input_ids"])[:first], [label for label in labels if label != -100])


def _stop_ids(tokenizer: Any, tasks: Sequence[_Task]) -> list[int]:
    """End-of-text and whatever the answers themselves end in (an end-of-turn token)."""
    special = set(tokenizer.all_special_ids)
    ends = {task.reference_ids[-1] for task in tasks if task.reference_ids[-1] in special}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return sorted(ends)


def _left_padded(prompts: list[list[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    return {
        "input_ids": torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
    }

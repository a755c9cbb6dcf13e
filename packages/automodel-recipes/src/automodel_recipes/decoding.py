"""Greedy decoding under any parallel layout."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch


@torch.no_grad()
def greedy(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    parallel: Any = None,
) -> list[list[int]]:
    """The ids that follow each prompt, up to its first stop id.

    Args:
        model: a Hugging Face model in eval mode, unwrapped.
        inputs: left-padded prompts: ``input_ids``, ``attention_mask`` and other columns ``[B, T]``; media as they are.
        max_new_tokens: cap on generated ids.
        stop_ids: ids that end an answer.
        pad_id: fills rows that have ended.
        parallel: the parallel context; then every rank must call this as often as every other.
    """
    if parallel is not None and parallel.pipeline is not None:
        rows = _through_pipeline(parallel, inputs, max_new_tokens, stop_ids, pad_id)
    else:
        rows = _by_transformers(model, inputs, max_new_tokens, stop_ids, pad_id, parallel)
    return [before_stop(row, set(stop_ids)) for row in rows]


class ThroughPipeline(torch.nn.Module):
    """A model that lies on pipeline stages, called as if it were whole; no gradients."""

    def __init__(self, model: Any, pipeline: Any) -> None:
        super().__init__()
        self.model, self.pipeline, self.config = model, pipeline, model.config

    def forward(self, *, use_cache: bool = False, **batch: torch.Tensor) -> Any:
        """``logits`` of the rows, on every stage."""
        return SimpleNamespace(logits=self.pipeline.logits(batch))


def before_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    """Ids before the first stop id."""
    return next((ids[:i] for i, token in enumerate(ids) if token in stop_ids), ids)


def _by_transformers(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    parallel: Any,
) -> list[list[int]]:
    # A router's balance is no business of answers, and transformers fails to measure it on one token (5.24).
    quiet = {"output_router_logits": False} if _measures_routers(model) else {}

    def generate() -> torch.Tensor:
        return model.generate(
            **inputs,
            **quiet,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=pad_id,
            synced_gpus=parallel is not None and parallel.world_size > 1,
        )

    if parallel is None:
        output = generate()
    else:
        with parallel.whole_sequences(model):
            output = generate()
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def _measures_routers(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def _through_pipeline(
    parallel: Any, inputs: Mapping[str, torch.Tensor], max_new_tokens: int, stop_ids: Sequence[int], pad_id: int
) -> list[list[int]]:
    """Decode without a key-value cache: each stage runs the whole row again for every token.

    Prompts are moved to the left and have room behind them, so that the stages see one shape from start to end.
    """
    lengths = inputs["attention_mask"].sum(dim=1)
    batch = {
        key: _moved_left(value, lengths, max_new_tokens, inputs["input_ids"].shape) for key, value in inputs.items()
    }
    positions = torch.arange(batch["input_ids"].shape[1], device=lengths.device)
    rows = torch.arange(len(lengths), device=lengths.device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=lengths.device)
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    new: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        batch["attention_mask"] = (positions < lengths[:, None]).long()
        token = parallel.pipeline.next_tokens(batch, lengths - 1)
        token = torch.where(ended, pad_id, token)
        batch["input_ids"][rows, lengths] = token
        lengths = lengths + 1
        ended |= torch.isin(token, stops)
        new.append(token)
        # Stages are sharded over data ranks too: all go on until the last one is done.
        if not parallel.any_rank(not bool(ended.all())):
            break
    return torch.stack(new, dim=1).tolist()


def _moved_left(value: torch.Tensor, lengths: torch.Tensor, room: int, shape: torch.Size) -> torch.Tensor:
    if value.shape != shape:
        return value
    moved = value.new_zeros(shape[0], shape[1] + room)
    for row, length in enumerate(lengths.tolist()):
        moved[row, :length] = value[row, shape[1] - length :]
    return moved

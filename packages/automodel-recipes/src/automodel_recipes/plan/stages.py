"""A pipeline rank's stages without their neighbours: what they compute and keep, in the order of the schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from automodel_recipes.batches import Batch
from automodel_recipes.memory.ghost import Collective

_NOT_FOR_THE_MODEL = ("shift_labels", "label_index", "sample_ids")


class LoneStages:
    """In place of a pipeline: hidden states come from nowhere, and gradients too.

    A stage keeps the activations of as many micro-batches as are on their way behind it: all of them with gpipe, and
    as many as there are stages from it to the end with the other schedules.
    """

    def __init__(self, pipeline: Any, collectives: list[Collective]) -> None:
        self._pipeline, self._collectives = pipeline, collectives

    def tied_parameters(self) -> Any:
        """As the pipeline's."""
        return self._pipeline.tied_parameters()

    def step(self, batches: Sequence[Batch], loss_fn: Any, num_label_tokens: Any) -> Tensor:
        """Forward of what is in flight, then its backward, stage by stage."""
        for numbered in self._pipeline.stages:
            stage = numbered.stage
            depth = self._pipeline.num_stages - stage.where.index
            in_flight = len(batches) if self._pipeline.schedule_name == "gpipe" else min(len(batches), depth)
            kept = [self._forward(stage, batch, loss_fn, num_label_tokens) for batch in batches[:in_flight]]
            while kept:
                output = kept.pop(0)
                output.backward(torch.zeros_like(output))
                del output
            self._count_messages(stage, batches)
        return torch.zeros(len(batches))

    def _forward(self, stage: Any, batch: Batch, loss_fn: Any, num_label_tokens: Any) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_THE_MODEL}
        hidden = torch.zeros(*batch["input_ids"].shape, self._pipeline.hidden_size, dtype=self._pipeline.dtype)
        out: Tensor = stage.run(hidden if stage.where.is_first else hidden.requires_grad_(), inputs)
        return loss_fn(out, batch["shift_labels"], num_label_tokens) if stage.where.is_last else out

    def _count_messages(self, stage: Any, batches: Sequence[Batch]) -> None:
        """Hidden states go on, and their gradients go back."""
        ranks = tuple(torch.distributed.get_process_group_ranks(self._pipeline.group))
        size = batches[0]["input_ids"].numel() * self._pipeline.hidden_size * self._pipeline.dtype.itemsize
        messages = len(batches) * ((not stage.where.is_last) + (not stage.where.is_first))
        self._collectives.extend([Collective("send", ranks, size)] * messages)

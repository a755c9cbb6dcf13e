"""Pipeline parallelism: torch's schedules over stages of a plain Hugging Face model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from automodel_parallel.pipeline_split import Stage, StageRange
from automodel_parallel.sequences import FILL
from automodel_parallel.tp.plans import text_config

Batch = dict[str, Any]
LossFn = Callable[[Tensor, Tensor, Any], Tensor]

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved1f1b": "Interleaved1F1B",
    "zero_bubble": "InterleavedZeroBubble",
}
SEVERAL_STAGES = ("interleaved1f1b", "zero_bubble")
"""Schedules that give each rank several stages."""
_DROPPED = ("label_index", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "sample_ids")


@dataclass
class _Running:
    """The micro-batches of the step that is running; stages look them up by number."""

    batches: list[Batch]
    loss_fn: LossFn | None = None
    num_label_tokens: Any = None


class Pipeline:
    """Forward and backward of a whole step: every micro-batch of the step is one micro-batch of the schedule.

    The schedule is handed micro-batch *numbers*, and each stage takes the tensors itself. So images, or anything else
    whose first dimension is not the batch, need no splitting, and ragged micro-batches are padded to one shape.
    """

    def __init__(
        self,
        model: nn.Module,
        ranges: Sequence[StageRange],
        *,
        num_stages: int,
        group: dist.ProcessGroup,
        device: torch.device,
        schedule: str,
        dtype: torch.dtype,
        tied: bool,
    ) -> None:
        self.model, self.group, self.device, self.dtype = model, group, device, dtype
        self.schedule_name, self.num_stages, self.tied = schedule, num_stages, tied
        config = text_config(model)
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        self.stages = [_NumberedStage(Stage(model, where), self) for where in ranges]
        self.is_last = any(where.is_last for where in ranges)
        self._running = _Running([])
        self._built: tuple[Any, Any] = (None, None)

    def step(self, batches: Sequence[Batch], loss_fn: LossFn, num_label_tokens: Any) -> Tensor:
        """Forward and backward of all micro-batches of a step.

        Args:
            batches: this data rank's micro-batches, the same on each of its stages; labels are shifted.
            loss_fn: ``loss(logits, shift_labels, num_label_tokens)``, summed over tokens.
            num_label_tokens: label tokens of the global batch.

        Returns: ``[M]``, this data rank's loss of each micro-batch on the last stage, zeros on the others; detached.
        Raises: ValueError: a loss on hidden states.
        """
        check_loss(loss_fn)
        loss = self._run(batches, loss_fn, num_label_tokens, training=True)
        self._sum_tied_gradients()
        return loss

    def evaluate(self, batches: Sequence[Batch], loss_fn: LossFn, num_label_tokens: Any) -> Tensor:
        """The loss as ``step`` returns it, without gradients."""
        check_loss(loss_fn)
        with torch.no_grad():
            return self._run(batches, loss_fn, num_label_tokens, training=False)

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a batch without labels, ``[B, T, V]``, on every stage; no gradients."""
        shape = (*batch["input_ids"].shape, self.vocab_size)
        return self._read(batch, lambda logits: logits.float(), shape, torch.float32)

    def next_tokens(self, batch: Batch, last_B: Tensor) -> Tensor:
        """The most likely token behind position ``last_B[b]`` of each row, ``[B]`` int64, on every stage."""
        rows = torch.arange(len(last_B), device=last_B.device)
        return self._read(batch, lambda logits: logits[rows, last_B].argmax(-1), tuple(last_B.shape), torch.int64)

    def _read(
        self, batch: Batch, read: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Run one batch forward and give every stage what ``read`` makes of the last one's logits."""
        found = torch.empty(shape, dtype=dtype, device=self.device)

        def keep(logits: Tensor, shift_labels: Tensor, num_label_tokens: Any) -> Tensor:
            found.copy_(read(logits))
            return logits.new_zeros(())

        labels = torch.full_like(batch["input_ids"], -100)
        with torch.no_grad():
            self._run([{**batch, "shift_labels": labels}], keep, 1, training=False)
        if self.group.size() > 1:
            dist.broadcast(found, src=dist.get_process_group_ranks(self.group)[-1], group=self.group)
        return found

    def tied_parameters(self) -> dict[nn.Parameter, int]:
        """Parameters that the first and the last stage both hold, with the number of holders."""
        return dict.fromkeys(self._tied(), 2)

    def _run(self, batches: Sequence[Batch], loss_fn: LossFn, num_label_tokens: Any, *, training: bool) -> Tensor:
        # An incomplete window at the end of an epoch may hold fewer micro-batches than the schedule can place.
        wanted = num_micro_batches(self.schedule_name, len(batches), self.group.size()) if training else len(batches)
        padded = pad_to_one_shape([*batches, *[_without_labels(batches[0])] * (wanted - len(batches))])
        self._running = _Running(padded, loss_fn, num_label_tokens)
        schedule = self._schedule(len(padded), padded[0]["input_ids"].shape, training=training)
        numbers = torch.arange(len(padded))
        losses: list[Tensor] = []
        args = (numbers.to(self.device),) if any(stage.stage.where.is_first for stage in self.stages) else ()
        target = {"target": numbers, "losses": losses} if self.is_last else {}
        run = schedule.step if training else schedule.eval
        run(*args, number=numbers, return_outputs=False, **target)
        self._running = _Running([])
        losses = losses[: len(batches)] or [torch.zeros((), device=self.device)] * len(batches)
        return torch.stack([loss.detach() for loss in losses])

    def _schedule(self, num_micro_batches: int, shape: torch.Size, *, training: bool) -> Any:
        # A schedule is bound to its shapes: another sequence length takes another one. Stages and weights stay.
        key = (num_micro_batches, shape, training)
        if self._built[0] != key:
            kind: Any = get_schedule_class(SCHEDULES[self.schedule_name])
            single = issubclass(kind, PipelineScheduleSingle)
            if not training:  # forward alone: the simplest schedules, which place any number of micro-batches
                kind = get_schedule_class("GPipe" if single else "LoopedBFS")
            stages = [self._torch_stage(stage, shape) for stage in self.stages]
            built = kind(stages[0] if single else stages, num_micro_batches, loss_fn=self._loss, scale_grads=False)
            self._built = (key, built)
        return self._built[1]

    def _torch_stage(self, stage: _NumberedStage, shape: torch.Size) -> PipelineStage:
        hidden = torch.empty(*shape, self.hidden_size, dtype=self.dtype, device="meta", requires_grad=True)
        logits = torch.empty(*shape, self.vocab_size, dtype=self.dtype, device="meta", requires_grad=True)
        number = torch.empty(1, dtype=torch.long, device="meta")
        where = stage.stage.where
        return PipelineStage(
            stage,
            where.index,
            self.num_stages,
            self.device,
            input_args=number if where.is_first else hidden,
            output_args=logits if where.is_last else hidden,
            group=self.group,
        )

    def _loss(self, logits: Tensor, number: Tensor) -> Tensor:
        running = self._running
        assert running.loss_fn is not None
        return running.loss_fn(logits, running.batches[int(number)]["shift_labels"], running.num_label_tokens)

    def inputs(self, number: int) -> Batch:
        """Model inputs of a micro-batch of the running step."""
        return {key: value for key, value in self._running.batches[number].items() if key != "shift_labels"}

    def _tied(self) -> list[nn.Parameter]:
        """The embedding's weight, or the rows of it that train beside an adapter."""
        if not self.tied or self.group.size() == 1:
            return []
        if self.group.rank() not in (0, self.group.size() - 1):
            return []
        return [p for p in self.model.get_input_embeddings().parameters() if p.requires_grad]

    def _sum_tied_gradients(self) -> None:
        """The embedding of the first stage and the head of the last are one parameter: exchange and add."""
        for tied in self._tied():
            self._sum_with_peer(tied)

    def _sum_with_peer(self, tied: nn.Parameter) -> None:
        grad = tied.grad.to_local() if isinstance(tied.grad, DTensor) else tied.grad
        assert grad is not None
        ranks = dist.get_process_group_ranks(self.group)
        peer = ranks[-1] if self.group.rank() == 0 else ranks[0]
        theirs = torch.empty_like(grad)
        sends = dist.P2POp(dist.isend, grad.contiguous(), peer, group=self.group)
        receives = dist.P2POp(dist.irecv, theirs, peer, group=self.group)
        for work in dist.batch_isend_irecv([sends, receives]):
            work.wait()
        grad += theirs


class _NumberedStage(nn.Module):
    """What torch's schedule calls: hidden states in, the micro-batch by number."""

    def __init__(self, stage: Stage, pipeline: Pipeline) -> None:
        super().__init__()
        self.__dict__["stage"], self.__dict__["pipeline"] = stage, pipeline

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the stage, which it does not own: a zero-bubble schedule takes their gradients apart."""
        return self.stage.own_parameters()

    def forward(self, hidden: Tensor, *, number: Tensor) -> Tensor:
        out = self.stage.run(hidden, self.pipeline.inputs(int(number)))
        if torch.is_grad_enabled() and not out.requires_grad:
            # Nothing in this stage trains: the schedule still sends a gradient back to it.
            out.requires_grad_()
        return out


def check_loss(loss_fn: Any) -> None:
    """Raises: ValueError: a loss on hidden states, which exist on the last stage only inside the model's forward."""
    if getattr(loss_fn, "takes_hidden_states", False):
        raise ValueError(
            f"loss {type(loss_fn).__name__} works on hidden states, but a pipeline hands it logits. Use a loss on "
            "logits, such as masked_ce, or set pp_size to 1."
        )


def num_micro_batches(schedule: str, at_least: int, num_ranks: int) -> int:
    """The fewest micro-batches, ``at_least`` so many, that a schedule can place on ``num_ranks``."""
    if schedule == "gpipe":
        return at_least
    if schedule == "1f1b":
        return max(at_least, num_ranks)
    # Interleaved schedules work in rounds of about as many micro-batches as ranks, all of one length.
    return next(n for n in itertools.count(at_least) if n % max(1, n // num_ranks) == 0)


def _without_labels(batch: Batch) -> Batch:
    return {**batch, "shift_labels": torch.full_like(batch["shift_labels"], -100)}


def pad_to_one_shape(batches: Sequence[Batch]) -> list[Batch]:
    """Batches with as many rows and tokens as the largest of them; what is added carries no label."""
    rows = max(batch["input_ids"].shape[0] for batch in batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    return [_pad(batch, rows, length) for batch in batches]


def _pad(batch: Batch, rows: int, length: int) -> Batch:
    own_rows, own_length = batch["input_ids"].shape
    padded = {key: value for key, value in batch.items() if key not in _DROPPED}
    for key, fill in FILL.items():
        if key in padded:
            value = F.pad(batch[key], (0, length - own_length), value=fill)
            # A row without any visible token would have no attention at all.
            row_fill = 1 if key == "attention_mask" else fill
            padded[key] = F.pad(value, (0, 0, 0, rows - own_rows), value=row_fill)
    return padded

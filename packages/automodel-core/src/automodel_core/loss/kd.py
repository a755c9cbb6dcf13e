"""Knowledge distillation: the student learns from labels and from a teacher's distribution, in chunks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from automodel_core.loss.forward import exchanged_head, forward_loss, model_inputs, unwrap
from automodel_core.loss.head import head_parameters, head_transform
from automodel_core.loss.labels import IGNORE_INDEX, check_labels
from automodel_core.loss.linear_ce import HeadTransform
from automodel_core.loss.reduction import TokenLossOptions, check_shapes, reduce_losses, replicated, softcap


class KDLoss:
    """``kd_ratio`` of the distance to the teacher plus the rest of cross-entropy, per supervised token.

    The distance is ``KL(teacher || student)`` of distributions at ``temperature``, times ``temperature ** 2`` so that
    its gradient keeps its size (Hinton et al., arXiv:1503.02531).

    Args:
        temperature: softness of both distributions, > 0.
        kd_ratio: 0 is cross-entropy alone, 1 is distillation alone.
        chunk_size: tokens whose two rows of logits exist at a time, in forward and backward.
        fp32_upcast: compute in float32 whatever the logits' dtype.
    """

    takes_hidden_states = True

    def __init__(
        self, temperature: float = 1.0, kd_ratio: float = 0.5, chunk_size: int = 512, fp32_upcast: bool = True
    ) -> None:
        if temperature <= 0.0:
            raise ValueError(f"temperature={temperature}: it must be > 0. Use 1 for the teacher's own distribution.")
        if not 0.0 <= kd_ratio <= 1.0:
            raise ValueError(f"kd_ratio={kd_ratio}: it must be in [0, 1]. 0 trains on labels alone, 1 on the teacher.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: a chunk has at least 1 token. Use 512.")
        self.temperature, self.kd_ratio = temperature, kd_ratio
        self.chunk_size, self.fp32_upcast = chunk_size, fp32_upcast

    def __call__(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        shift_labels: torch.Tensor,
        num_label_tokens: torch.Tensor | int | None = None,
        *,
        student_head: "_Head | None" = None,
        teacher_head: "_Head | None" = None,
    ) -> torch.Tensor:
        """The loss of one micro-batch.

        Args:
            student: logits ``[..., V]``, or hidden states ``[..., H]`` together with ``student_head``.
            teacher: the same for the teacher, whose width may differ and whose vocabulary may not.
            shift_labels: ``[...]`` int64, already shifted; ignored positions count in neither term.
            num_label_tokens: label tokens of the *global* batch; None: of this one.
            student_head, teacher_head: what turns hidden states into logits.

        Returns: float32 scalar; 0, connected to the graph, when no label counts.
        Raises: ValueError: the two vocabularies differ.
        """
        check_shapes(student, shift_labels)
        labels = shift_labels.to(student.device).reshape(-1)
        index = torch.nonzero(labels != IGNORE_INDEX).flatten()
        rows_s = replicated(student).reshape(-1, student.shape[-1])[index]
        rows_t = replicated(teacher).detach().reshape(-1, teacher.shape[-1])[index]
        head_s, head_t = student_head or _Head(), teacher_head or _Head()
        losses = [
            checkpoint(self._chunk, s, t, y, head_s, head_t, use_reentrant=False)
            for s, t, y in zip(
                rows_s.split(self.chunk_size),
                rows_t.split(self.chunk_size),
                labels[index].split(self.chunk_size),
                strict=True,
            )
        ]
        return reduce_losses(torch.stack(losses).sum(), labels, num_label_tokens, TokenLossOptions())

    def _chunk(
        self, rows_s: torch.Tensor, rows_t: torch.Tensor, labels: torch.Tensor, head_s: "_Head", head_t: "_Head"
    ) -> torch.Tensor:
        student, teacher = head_s(rows_s, self.fp32_upcast), head_t(rows_t, self.fp32_upcast).detach()
        if student.shape != teacher.shape:
            raise ValueError(
                f"a student with {student.shape[-1]} logits and a teacher with {teacher.shape[-1]}: "
                "distillation needs one "
                "vocabulary. Choose a teacher with the student's tokenizer."
            )
        check_labels(labels, student.shape[-1])
        log_p = F.log_softmax(student / self.temperature, dim=-1)
        log_q = F.log_softmax(teacher / self.temperature, dim=-1)
        distance = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * self.temperature**2
        nll = F.cross_entropy(student, labels, reduction="sum")
        return self.kd_ratio * distance + (1.0 - self.kd_ratio) * nll


class _Head:
    """Rows to logits: identity, or a matmul and what the model does after it."""

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        transform: HeadTransform | None = None,
    ) -> None:
        self.weight, self.bias, self.transform = weight, bias, transform or HeadTransform()

    @classmethod
    def of(cls, model: nn.Module, head: nn.Module) -> "_Head":
        weight, bias = head_parameters(head)
        return cls(replicated(weight), None if bias is None else replicated(bias), head_transform(unwrap(model).config))

    def __call__(self, rows: torch.Tensor, fp32_upcast: bool) -> torch.Tensor:
        logits = rows if self.weight is None else F.linear(rows.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.float() if fp32_upcast else logits
        return softcap(logits * self.transform.scale, self.transform.softcap)


def forward_kd_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: Mapping[str, Any],
    loss_fn: KDLoss,
    num_label_tokens: torch.Tensor | int | None,
) -> torch.Tensor:
    """The distillation loss of one micro-batch; neither model's full logits exist.

    Args:
        student: the model that trains, as ``forward_loss`` takes it.
        teacher: a model with the same vocabulary; run without gradients, put it in ``eval()`` mode.
        batch: what ``shift_labels`` returned.
        loss_fn: the ``KDLoss``.
        num_label_tokens: label tokens of the *global* batch.

    Returns: scalar, as ``forward_loss``.
    """
    teacher_hidden, teacher_head = _hidden_and_head(teacher, batch)

    class _StudentLoss:
        takes_hidden_states = True

        def __call__(
            self,
            hidden: torch.Tensor,
            labels: torch.Tensor,
            count: Any,
            *,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            label_index: torch.Tensor | None,
            transform: HeadTransform,
        ) -> torch.Tensor:
            head = _Head(replicated(weight), None if bias is None else replicated(bias), transform)
            return loss_fn(
                replicated(hidden), teacher_hidden, labels, count, student_head=head, teacher_head=teacher_head
            )

    return forward_loss(student, batch, _StudentLoss(), num_label_tokens)


@torch.no_grad()
def _hidden_and_head(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, _Head]:
    """What a model's head is given, and the head; the head's weight is copied only where a wrapper shards it."""
    captured: list[tuple[torch.Tensor, _Head]] = []

    def head_forward(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        captured.append((replicated(hidden), _Head.of(model, head)))
        return hidden[..., :1]

    with exchanged_head(model, head_forward):
        model(**model_inputs(model, batch))
    return captured[0]

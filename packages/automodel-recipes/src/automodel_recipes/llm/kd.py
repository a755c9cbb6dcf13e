"""Knowledge distillation: a student learns from the labels and from a teacher's distribution."""

from dataclasses import dataclass
from typing import Any

import torch

from automodel_core.loss import KDLoss, forward_kd_loss
from automodel_recipes.batches import Batch
from automodel_recipes.build.call import build
from automodel_recipes.build.training import apply_mixed_precision
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.evaluate import EvalMetrics
from automodel_recipes.llm.finetune import LLMFinetuneRecipe


@dataclass(frozen=True)
class DistillationMetrics(EvalMetrics):
    """The loss under the teacher, which is no cross-entropy: it has no perplexity and no bits per byte."""

    def extra(self) -> dict[str, float]:
        """Nothing besides the loss."""
        return {}


def _refuse_unknown_ids(teacher: Any, tokenizer: Any) -> None:
    """Raises: UnusableInputError: the student's tokenizer makes ids that the teacher has no row for."""
    if not hasattr(tokenizer, "get_vocab"):  # one of the user's own kind, or none while a run is only planned
        return
    rows, largest = teacher.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UnusableInputError(
            f"teacher_model has {rows} rows for the student's tokenizer with ids up to {largest}: a teacher knows "
            "every token of the student. Take one that was trained with them, or leave tokenizer.add_tokens out."
        )


class KnowledgeDistillationRecipe(LLMFinetuneRecipe):
    """Fine-tuning under a teacher: ``teacher_model`` beside ``model``, and a ``KDLoss`` as ``loss_fn``.

    The teacher is whole on every rank, in eval mode, without gradients; neither model's full logits exist.
    """

    name = "kd"
    counts_correct = False  # its loss compares distributions

    def build_model(self) -> None:
        """The student as in fine-tuning, then the teacher."""
        super().build_model()
        if self.config.get("loss_fn") is None:
            self.loss_fn = KDLoss()
        if not isinstance(self.loss_fn, KDLoss):
            raise UnusableInputError(
                f"loss_fn is {type(self.loss_fn).__name__}; distillation needs a KDLoss. "
                "Write loss_fn: {_target_: kd_loss, temperature: 2.0, kd_ratio: 0.5}."
            )
        teacher: Any = build(self.config.teacher_model)
        _refuse_unknown_ids(teacher, self.tokenizer)
        apply_mixed_precision(self.config, teacher)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)

    def evaluate(self) -> dict[str, EvalMetrics]:
        """The loss under the teacher on every validation set."""
        return {name: DistillationMetrics(m.loss, m.num_label_tokens) for name, m in super().evaluate().items()}

    def forward_loss(self, batch: Batch, num_targets: torch.Tensor) -> torch.Tensor:
        """Distance to the teacher and cross-entropy, over ``num_targets``."""
        return forward_kd_loss(self.model, self.teacher, batch, self.loss_fn, num_targets)

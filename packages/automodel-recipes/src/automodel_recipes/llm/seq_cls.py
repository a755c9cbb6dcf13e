"""Sequence classification: one label a row, on any model that transformers can give a classification head."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from automodel_data.collate import classification_collater
from automodel_recipes.batches import Batch, to_device
from automodel_recipes.build.data import pad_token_id
from automodel_recipes.evaluate import EvalMetrics, eval_mode
from automodel_recipes.llm.finetune import LLMFinetuneRecipe

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ClassificationMetrics(EvalMetrics):
    """Loss per row, and the share of rows whose highest logit is the label's."""

    accuracy: float = 0.0

    def extra(self) -> dict[str, float]:
        """What is reported besides the loss."""
        return {"accuracy": self.accuracy}


class SequenceClassificationRecipe(LLMFinetuneRecipe):
    """Rows carry ``labels: [class]``; the model is a ``NeMoAutoModelForSequenceClassification``."""

    name = "seq-cls"
    writes_text = False

    def build_model(self) -> None:
        """The model as in fine-tuning; its config is told the padding id, by which it finds each row's last token."""
        super().build_model()
        config: Any = self.unwrapped().config
        if config.pad_token_id is None:
            config.pad_token_id = pad_token_id(self.tokenizer)

    def build_collate_fn(self, section: Any, *, packed: bool) -> Any:
        """Padding, with one label a row."""
        if section is not None and "collate_fn" in section:
            return super().build_collate_fn(section, packed=packed)
        return partial(classification_collater, pad_token_id=self.unwrapped().config.pad_token_id)

    def prepare(self, batch: Batch) -> Batch:
        """Labels as ``[B]``; there is nothing to shift."""
        return {**batch, "labels": batch["labels"].reshape(-1)}

    def count_targets(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Rows with a label."""
        return torch.stack([(batch["labels"] != IGNORE_INDEX).sum() for batch in batches]).sum()

    def forward_loss(self, batch: Batch, num_targets: torch.Tensor) -> torch.Tensor:
        """The sum of row losses over ``num_targets``."""
        return self.loss_fn(self._logits(batch), batch["labels"], num_targets)

    def _logits(self, batch: Batch) -> torch.Tensor:
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    @torch.no_grad()
    def evaluate(self) -> dict[str, EvalMetrics]:
        """Loss and accuracy of every validation set."""
        return {name: self._measure(loader) for name, loader in self.eval_loaders.items()}

    def _measure(self, loader: Any) -> ClassificationMetrics:
        one = torch.ones((), dtype=torch.int64, device=self.device)
        totals = torch.zeros(3, dtype=torch.float64)
        with eval_mode(self.model):
            for raw in loader:
                self.poll_stop()
                batch = self.prepare(to_device(raw, self.device))
                logits, labels = self._logits(batch), batch["labels"]
                right = (logits.argmax(-1) == labels).sum()
                row = (self.loss_fn(logits, labels, one), right, self.count_targets([batch]))
                totals += torch.stack([value.detach().double().cpu() for value in row])
        loss, right, rows = self.parallel.sum_over_data(totals.float().to(self.device)).tolist()
        return ClassificationMetrics(loss / max(rows, 1), int(rows), accuracy=right / max(rows, 1))

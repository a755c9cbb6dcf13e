"""Validation: the token-weighted loss over a whole data set, the same number whatever the batches or ranks."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from automodel_recipes.batches import Batch, batched, to_device
from automodel_recipes.token_accuracy import counting
from automodel_recipes.train_step import forward_only

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


@dataclass(frozen=True)
class EvalMetrics:
    """Loss per supervised token (nats), and how many there were over all ranks."""

    loss: float
    num_label_tokens: int
    num_correct: int | None = None
    """Supervised tokens that were the most likely one; None where the loss has no such notion."""
    num_bytes: int = 0
    """UTF-8 bytes that the supervised tokens spell; 0 where they spell none."""

    def extra(self) -> dict[str, float]:
        """What is reported besides the loss."""
        extra = {"perplexity": self.perplexity}
        if self.num_correct is not None:
            extra["token_accuracy"] = self.num_correct / max(self.num_label_tokens, 1)
        if self.num_bytes:
            extra["bits_per_byte"] = self.loss * self.num_label_tokens / math.log(2) / self.num_bytes
        return extra

    @property
    def perplexity(self) -> float:
        """``exp(loss)``, infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def named_metrics(validation: Mapping[str, EvalMetrics]) -> dict[str, float]:
    """Every metric of every set by the name that it has in trackers: ``val/loss``, ``val_math/perplexity``."""
    return {
        f"{prefix_of(name)}/{key}": value
        for name, metrics in validation.items()
        for key, value in {"loss": metrics.loss, **metrics.extra()}.items()
    }


def prefix_of(name: str) -> str:
    """What stands before the metrics of a validation set: ``val``, or ``val_NAME`` for ``validation_dataset_NAME``."""
    return name if name == "val" else f"val_{name}"


@contextlib.contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch a model to eval mode and every module back to what it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def evaluate_loss(r: "BaseRecipe", batches: Iterable[Batch]) -> EvalMetrics:
    """Sum of token losses over all batches and ranks, divided by the sum of label tokens once.

    Every rank must be handed the same number of batches; rows without labels count for nothing.

    Args:
        r: a recipe after ``setup``.
        batches: one of its ``eval_loaders``; the same object gives the same batches each time.

    Raises: StopAgreed: a stop signal came on some rank; the sum so far is dropped.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device="cpu")
    count = torch.zeros((), dtype=torch.int64, device=r.device)
    one = torch.ones((), dtype=torch.int64, device=r.device)
    with eval_mode(r.model), counting(r) as counter:
        for group in batched(r.eval_bytes.see(r, id(batches), batches), r.parallel.batches_per_forward):
            r.poll_stop()
            prepared = [r.prepare(to_device(batch, r.device)) for batch in group]
            count += r.count_targets(prepared)
            loss_sum += forward_only(r, prepared, one).double().cpu()
    total = int(r.parallel.sum_over_data(count))
    correct = None if counter is None else int(r.parallel.sum_over_loss_ranks(counter.correct))
    on_device = loss_sum.float() if r.device.type == "mps" else loss_sum  # MPS has no float64
    summed = float(r.parallel.sum_over_loss_ranks(on_device.to(r.device)))
    return EvalMetrics(summed / total if total else 0.0, total, correct, r.eval_bytes.total(id(batches)))

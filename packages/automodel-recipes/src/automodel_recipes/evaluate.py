"""Validation: the token-weighted loss over a whole data set, the same number whatever the batches or ranks."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from automodel_recipes.batches import Batch, batched, to_device
from automodel_recipes.train_step import forward_only

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


@dataclass(frozen=True)
class EvalMetrics:
    """Loss per supervised token (nats), and how many there were over all ranks."""

    loss: float
    num_label_tokens: int

    def extra(self) -> dict[str, float]:
        """What is reported besides the loss."""
        return {"perplexity": self.perplexity}

    @property
    def perplexity(self) -> float:
        """``exp(loss)``, infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


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

    Raises: StopAgreed: a stop signal came on some rank; the sum so far is dropped.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device="cpu")
    count = torch.zeros((), dtype=torch.int64, device=r.device)
    one = torch.ones((), dtype=torch.int64, device=r.device)
    with eval_mode(r.model):
        for group in batched(batches, r.parallel.batches_per_forward):
            r.poll_stop()
            prepared = [r.prepare(to_device(batch, r.device)) for batch in group]
            count += r.count_targets(prepared)
            loss_sum += forward_only(r, prepared, one).double().cpu()
    total = int(r.parallel.sum_over_data(count))
    on_device = loss_sum.float() if r.device.type == "mps" else loss_sum  # MPS has no float64
    summed = float(r.parallel.sum_over_loss_ranks(on_device.to(r.device)))
    return EvalMetrics(summed / total if total else 0.0, total)

"""Head and loss of a causal language model as one op: ``model(..., labels=...)`` never forms the logits."""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from automodel_kernels.ops.linear_cross_entropy import linear_cross_entropy

IGNORE_INDEX = -100
_SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def head_forward(strict: bool) -> Callable[..., Any]:
    """The model's forward, with head and loss swapped on the instance while it runs with labels.

    The head hands its input through, so the loss function receives hidden states in place of logits.
    """

    def forward(self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        own = type(self).forward
        if labels is None and kwargs.get("shift_labels") is None:
            return own(self, *args, **kwargs)
        head, own_loss = self.get_output_embeddings(), vars(self).get("_loss_function")
        head.forward = types.MethodType(lambda self, hidden: hidden, head)
        self._loss_function = lambda **inputs: _loss(head, strict, **inputs)
        try:
            output = own(self, *args, labels=labels, **kwargs)
        finally:
            _restore(self, head, own_loss)
        output.logits = None
        return output

    return forward


def _loss(
    head: Any,
    strict: bool,
    *,
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    label_index: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """transformers' causal loss, on hidden states: a sum over ``num_items_in_batch``, or a mean over valid labels."""
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
    return linear_cross_entropy(
        logits,
        head.weight,
        shift_labels.to(logits.device).contiguous(),
        bias=head.bias,
        label_index=label_index,
        num_valid=num_items_in_batch,
        strict=strict,
    )


def head_unfit(model: Any, known: tuple[str, ...]) -> str:
    """Why head and loss of this model cannot be fused."""
    if type(model).__name__ not in known:
        return f"its class is not among {', '.join(known)}"
    config = model.config
    for name in _SCALED:
        if getattr(config, name, None) not in (None, 1.0):
            return f"config.{name} changes the logits between head and loss"
    if "forward" in vars(model):
        return "its forward was replaced on the instance by someone else"
    return "" if isinstance(model.get_output_embeddings(), nn.Linear) else "its head is not a linear layer"


def _restore(model: Any, head: Any, own_loss: Any) -> None:
    vars(head).pop("forward", None)
    if own_loss is None:
        vars(model).pop("_loss_function", None)
    else:
        model._loss_function = own_loss

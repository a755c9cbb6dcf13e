"""Cross-entropy from hidden states and the output head: the full logits never exist.

Shapes: N positions, n of them kept, C rows of a chunk, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from automodel_core.loss.labels import IGNORE_INDEX, check_labels
from automodel_core.loss.reduction import (
    TokenLossOptions,
    check_reduction,
    check_shapes,
    denominator,
    replicated,
    token_losses,
)
from automodel_core.loss.tied import TiedGradient

_CPU_CHUNK_BYTES = 16 << 20
_GPU_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to its logits after the head, in this order: multiply by ``scale``, then softcap."""

    scale: float = 1.0
    softcap: float = 0.0


class FusedLinearCrossEntropy:
    """Cross-entropy that takes hidden states and the head's weight, and drops ignored positions before the matmul.

    Gradients of a chunk are formed while its logits exist, so backward multiplies nothing by the vocabulary again
    and neither pass holds more than one chunk of logits. A frozen head costs no weight gradient.

    Args:
        ignore_index: label of positions that do not count.
        logit_softcapping: softcap for a head whose model does not apply one itself; the model's own is found by
            ``forward_loss`` and must not be repeated here.
        reduction: as in ``MaskedCrossEntropy``; ``none`` recomputes each chunk in backward.
        label_smoothing, z_loss: see ``TokenLossOptions``.
        chunk_len: rows of logits that exist at a time; None picks them from a byte budget.

    Source: gradients in forward follow the closed form of softmax cross-entropy; ``F.linear_cross_entropy`` of
    torch 2.13 is the comparison in ``benchmarks/core_losses.py``.
    """

    takes_hidden_states = True

    def __init__(
        self,
        ignore_index: int = IGNORE_INDEX,
        logit_softcapping: float = 0.0,
        reduction: str = "sum",
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk_len: int | None = None,
    ) -> None:
        if chunk_len is not None and chunk_len < 1:
            raise ValueError(f"chunk_len={chunk_len}: a chunk has at least 1 row. Leave it out to let memory decide.")
        self.chunk_len = chunk_len
        self.reduction = check_reduction(reduction)
        self.options = TokenLossOptions(ignore_index, label_smoothing, z_loss, logit_softcapping)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        shift_labels: torch.Tensor,
        num_label_tokens: torch.Tensor | int | None = None,
        *,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        label_index: torch.Tensor | None = None,
        transform: HeadTransform | None = None,
        tied_gradient: TiedGradient | None = None,
    ) -> torch.Tensor:
        """The loss of one micro-batch.

        Args:
            hidden_states: ``[..., H]``; a DTensor is gathered.
            shift_labels: ``[...]`` int64, already shifted.
            num_label_tokens: label tokens of the *global* batch; None: of this one.
            weight: the head, ``[V, H]``; a DTensor is gathered.
            bias: ``[V]``.
            label_index: flat positions to keep, int64; padding points to an ignored position. Without it the
                positions are looked up, which on a GPU waits for the device.
            transform: what the model does to its logits after the head.
            tied_gradient: where the weight's gradient goes if the input embedding's backward is to return it.

        Returns: float32 scalar; 0, connected to hidden states and weight, when no label counts.
        Raises: ValueError: shapes disagree, a label is outside the vocabulary, two softcaps are asked for.
        """
        hidden_states, weight = replicated(hidden_states), replicated(weight)
        bias = None if bias is None else replicated(bias)
        check_shapes(hidden_states, shift_labels)
        labels = shift_labels.to(hidden_states.device).reshape(-1)
        check_labels(labels, weight.shape[0], self.options.ignore_index)
        plan = self._plan(weight, transform or HeadTransform())
        index = self._kept(labels, label_index)
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        kept, targets = (hidden, labels) if index is None else (hidden.index_select(0, index), labels[index])
        kept, weight, bias = _one_dtype(kept, weight, bias)
        with torch.autocast(kept.device.type, enabled=False):
            if self.reduction == "none":
                losses = _token_losses(kept, weight, bias, targets, plan)
                if index is not None:
                    losses = losses.new_zeros(labels.shape).index_copy(0, index, losses)
                return losses.view(shift_labels.shape)
            total = _LinearCrossEntropy.apply(kept, weight, bias, targets, plan, tied_gradient)
        count = num_label_tokens if self.reduction == "sum" else None
        return total / denominator(labels, count, self.options)

    def _kept(self, labels: torch.Tensor, label_index: torch.Tensor | None) -> torch.Tensor | None:
        if label_index is not None:
            return label_index.to(labels.device)
        index = torch.nonzero(labels != self.options.ignore_index).flatten()
        return None if index.numel() == labels.numel() else index

    def _plan(self, weight: torch.Tensor, transform: HeadTransform) -> "_Plan":
        if transform.softcap and self.options.logit_softcapping:
            raise ValueError(
                f"logit_softcapping={self.options.logit_softcapping} on a model that caps its logits at "
                f"{transform.softcap} itself: only one can apply. Remove logit_softcapping from the loss."
            )
        chunk_len = self.chunk_len
        if chunk_len is None:
            budget = _CPU_CHUNK_BYTES if weight.device.type == "cpu" else _GPU_CHUNK_BYTES
            chunk_len = max(64, budget // (4 * weight.shape[0]))
        cap = transform.softcap or self.options.logit_softcapping
        return _Plan(self.options, chunk_len, transform.scale, cap, torch.is_grad_enabled())


@dataclass(frozen=True)
class _Plan:
    options: TokenLossOptions
    chunk_len: int
    scale: float
    softcap: float
    needs_grad: bool

    def token_options(self) -> TokenLossOptions:
        o = self.options
        return TokenLossOptions(o.ignore_index, o.label_smoothing, o.z_loss, self.softcap)


def _one_dtype(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Everything in the dtype that a plain head would multiply in: autocast's, else the weight's."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunk_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if scale == 1.0 else logits * scale


def _token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, plan: _Plan
) -> torch.Tensor:
    """Token losses ``[n]`` by autograd, each chunk recomputed in backward: for per-token weights afterwards."""

    def one(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return token_losses(_chunk_logits(rows, weight, bias, plan.scale), targets, plan.token_options())

    chunks = zip(hidden.split(plan.chunk_len), labels.split(plan.chunk_len), strict=True)
    return torch.cat([checkpoint(one, rows, targets, use_reentrant=False) for rows, targets in chunks])


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of token losses; gradients for a unit upstream gradient are formed in forward and scaled in backward.

    With u = scale * (h W^T + b), z = cap * tanh(u / cap), p = softmax(z), y the label, s the smoothing, w the z-loss:
        loss = lse(z) - (1 - s) z_y - s mean(z) + w lse(z)^2
        dz   = p (1 + 2 w lse) - (1 - s) onehot(y) - s / V;   du = dz (1 - (z / cap)^2);   dh = scale du W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        plan: _Plan,
        tied_gradient: TiedGradient | None,
    ) -> torch.Tensor:
        ctx.tied_gradient = tied_gradient
        grads = _Gradients.like(hidden, weight, bias, ctx.needs_input_grad) if plan.needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], plan.chunk_len):
            rows, targets = hidden[start : start + plan.chunk_len], labels[start : start + plan.chunk_len]
            # An ignored row may hold inf or NaN (padding behind a mask): 0 times that is not 0.
            rows = rows.masked_fill((targets == plan.options.ignore_index).unsqueeze(-1), 0.0)
            loss, logits_grad = _loss_and_grad(_chunk_logits(rows, weight, bias, plan.scale), targets, plan)
            total += loss
            if grads is not None and logits_grad is not None:
                grads.accumulate(start, rows, weight, logits_grad)
        ctx.unscaled = None if grads is None else grads.finished(weight, bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        if ctx.unscaled is None:
            raise RuntimeError(
                "backward through FusedLinearCrossEntropy a second time: its gradients are handed on, not copied. Call "
                "backward once on the sum of what needs it, or use ChunkedCrossEntropy."
            )
        grads, ctx.unscaled, upstream = ctx.unscaled, None, grad_outputs[0]
        # In place: the head's gradient is the largest tensor of a step, and a copy of it would be its peak.
        scaled = [None if grad is None else grad.mul_(upstream.to(grad.dtype)) for grad in grads]
        if ctx.tied_gradient is not None:
            scaled[1] = ctx.tied_gradient.take(scaled[1])
        return (*scaled, None, None, None)


@dataclass
class _Gradients:
    """Gradient buffers of one call; None where no gradient is asked for."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def like(
        cls, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, needed: tuple[bool, ...]
    ) -> "_Gradients":
        # Sums over chunks are kept in float32; rows of the hidden gradient are each written once.
        return cls(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None,
        )

    def accumulate(self, start: int, rows: torch.Tensor, weight: torch.Tensor, logits_grad: torch.Tensor) -> None:
        if self.bias is not None:
            self.bias += logits_grad.sum(dim=0)
        logits_grad = logits_grad.to(weight.dtype)
        if self.hidden is not None:
            self.hidden[start : start + rows.shape[0]] = logits_grad @ weight
        if self.weight is None:
            return
        if weight.dtype == torch.float32:
            self.weight.addmm_(logits_grad.t(), rows)
        else:
            self.weight += logits_grad.t() @ rows

    def finished(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """The three gradients in their tensors' dtypes."""
        return (
            self.hidden,
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def _loss_and_grad(
    logits: torch.Tensor, targets: torch.Tensor, plan: _Plan
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss sum of a chunk and, in place of the logits, its gradient with respect to the head's raw output."""
    options, vocab_size = plan.options, logits.shape[-1]
    counts = (targets != options.ignore_index).float()
    safe = targets.masked_fill(targets == options.ignore_index, 0).unsqueeze(-1)
    slope = None
    if plan.softcap:
        logits = logits.div_(plan.softcap).tanh_()
        slope = 1.0 - logits.square()
        logits = logits.mul_(plan.softcap)
    losses = -(1.0 - options.label_smoothing) * logits.gather(-1, safe).squeeze(-1)
    if options.label_smoothing:
        losses -= options.label_smoothing * logits.mean(dim=-1)
    largest = logits.amax(dim=-1, keepdim=True)
    exps = logits.sub_(largest).exp_()
    norm = exps.sum(dim=-1, keepdim=True)
    lse = (largest + norm.log()).squeeze(-1)
    losses += lse
    row_scale = counts / norm.squeeze(-1)
    if options.z_loss:
        losses += options.z_loss * lse.square()
        row_scale *= 1.0 + 2.0 * options.z_loss * lse
    total = losses.dot(counts)
    if not plan.needs_grad:
        return total, None
    grad = exps.mul_((row_scale * plan.scale).unsqueeze(-1))
    grad.scatter_add_(-1, safe, (counts * (plan.scale * (options.label_smoothing - 1.0))).unsqueeze(-1))
    if options.label_smoothing:
        grad.sub_((counts * (plan.scale * options.label_smoothing / vocab_size)).unsqueeze(-1))
    return total, grad if slope is None else grad.mul_(slope)

"""Run a model under a loss, whichever of logits and hidden states the loss wants (contract C2)."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from automodel_core.loss.head import check_head_transform, head_parameters, head_transform, probe_logits
from automodel_core.loss.router import router_loss
from automodel_core.loss.tied import joined_gradient

_NOT_FOR_THE_MODEL = ("shift_labels", "label_index", "labels", "sample_ids", "router_mask")
_checked_heads: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def forward_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    loss_fn: Any,
    num_label_tokens: torch.Tensor | int | None,
    *,
    loss_group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """The loss of one micro-batch, with a graph to every parameter that trains.

    Args:
        model: any Hugging Face causal or image-text model, as it is or wrapped by DDP, FSDP2 or ``peft``.
        batch: what ``shift_labels`` returned: the model's inputs, ``shift_labels`` and optionally ``label_index``.
        loss_fn: a loss of contract C2. With ``takes_hidden_states`` the output head is entered once with its forward
            exchanged for the loss, so that full logits never exist.
        num_label_tokens: label tokens of the *global* batch.
        loss_group: ranks that hold different tokens of a micro-step: a mixture-of-experts router is balanced over all.

    Returns: scalar; a router's auxiliary loss is added, weighted by the share of labels; see ``router_loss``.
    Raises: ValueError: no ``shift_labels``, no output head, or a model whose logits the loss cannot reproduce.
    """
    if "shift_labels" not in batch:
        raise ValueError(
            f"forward_loss got a batch with keys {sorted(batch)}: it needs 'shift_labels'. Call "
            "shift_labels(batch) first."
        )
    labels = batch["shift_labels"]
    inputs = model_inputs(model, batch)
    if getattr(loss_fn, "takes_hidden_states", False):
        loss, outputs = _loss_in_head(model, inputs, loss_fn, labels, num_label_tokens, batch.get("label_index"))
    else:
        outputs = model(**inputs)
        loss = loss_fn(outputs.logits, labels, num_label_tokens)
    balance = router_loss(outputs, unwrap(model), batch, num_label_tokens, loss_group)
    return loss if balance is None else loss + balance


def unwrap(model: nn.Module) -> Any:
    """The Hugging Face model inside DDP, compile and ``peft`` wrappers."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model.get_base_model() if hasattr(model, "get_base_model") else model
        model = inner


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a batch that the model takes, with the key-value cache off where it has one."""
    inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_THE_MODEL}
    parameters = inspect.signature(unwrap(model).forward).parameters
    # Some families (LLaVA, Qwen3-VL) take it through **kwargs; left on, packed documents see one another.
    passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) and hasattr(
        unwrap(model).config, "get_text_config"
    )
    if "use_cache" in parameters or passed_on:
        inputs.setdefault("use_cache", False)
    return inputs


@contextmanager
def exchanged_head(model: nn.Module, head_forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the block the model's output head runs ``head_forward(head, hidden_states)`` instead of its own forward.

    Only the instance is touched. The head module is still *called*, so hooks of FSDP and tensor parallelism around it
    work as ever.
    """
    head = unwrap(model).get_output_embeddings()
    if head is None:
        raise ValueError(
            f"{type(unwrap(model)).__name__} has no output head: a loss on hidden states needs one. Use masked_ce."
        )
    had_own = "forward" in head.__dict__
    own = head.__dict__.get("forward")
    head.forward = lambda hidden_states: head_forward(head, hidden_states)
    try:
        yield
    finally:
        if had_own:
            head.forward = own
        else:
            del head.forward


def _loss_in_head(
    model: nn.Module,
    inputs: Mapping[str, Any],
    loss_fn: Any,
    labels: torch.Tensor,
    num_label_tokens: torch.Tensor | int | None,
    label_index: torch.Tensor | None,
) -> tuple[torch.Tensor, Any]:
    inner = unwrap(model)
    transform = head_transform(inner.config)
    captured: list[torch.Tensor] = []

    joins = "tied_gradient" in inspect.signature(type(loss_fn).__call__).parameters
    with joined_gradient(inner) if joins else nullcontext() as tied_gradient:
        extra = {} if tied_gradient is None else {"tied_gradient": tied_gradient}

        def head_forward(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
            weight, bias = head_parameters(head)
            loss = loss_fn(
                hidden,
                labels,
                num_label_tokens,
                weight=weight,
                bias=bias,
                label_index=label_index,
                transform=transform,
                **extra,
            )
            captured.append(loss)
            return _as_head_output(probe_logits(loss), hidden)

        with exchanged_head(model, head_forward):
            outputs = model(**inputs)
    if len(captured) != 1:
        raise ValueError(
            f"{type(inner).__name__} entered its output head {len(captured)} times in a forward: a loss on hidden "
            "states needs exactly one. Use masked_ce."
        )
    logits = outputs.logits
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    if inner not in _checked_heads:
        check_head_transform(inner, logits, transform)
        _checked_heads.add(inner)
    # The zero term lets gradients pass through the model's own outputs, where FSDP hangs its hooks; the loss itself
    # does not, since the model may scale, cap or round what comes out of its head.
    return captured[0] + 0.0 * logits.float().sum(), outputs


def _as_head_output(output: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """A replicated DTensor where the head's input is one, since its output hook expects its own kind."""
    if not isinstance(hidden, DTensor):
        return output
    mesh = hidden.device_mesh
    return DTensor.from_local(output, mesh, [Replicate()] * mesh.ndim, run_check=False)

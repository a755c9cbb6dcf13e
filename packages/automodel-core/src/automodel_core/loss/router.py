"""The balance loss of a mixture-of-experts router, over the tokens of every rank that takes part in a micro-step."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from automodel_core.loss.labels import IGNORE_INDEX

_checked: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def router_loss(
    outputs: Any,
    model: Any,
    batch: Mapping[str, Any],
    num_label_tokens: torch.Tensor | int | None,
    group: dist.ProcessGroup | None,
) -> torch.Tensor | None:
    """This rank's part of ``coefficient * share * E * sum_e f_e p_e``; None where the model gives none.

    ``f_e`` is the share of choices that fell on expert e and ``p_e`` its mean probability, both over all tokens of the
    group's micro-batches; ``share`` is that of their labels in the global batch, so that accumulation is exact. The
    counts ``f_e`` have no gradient, hence the parts of the ranks, and their gradients, add up to the whole.

    Args:
        outputs: of the model, with ``aux_loss`` and ``router_logits``.
        model: the Hugging Face model itself.
        batch: as ``forward_loss`` takes it; ``router_mask`` ``[B, T]`` marks the tokens where rows are cut, else
            ``attention_mask`` does.
        num_label_tokens: label tokens of the global batch.
        group: ranks that hold different tokens; None for one.

    Raises: ValueError: with a group, a model whose balance loss is not this one.
    Source: Fedus et al., arXiv:2101.03961, equations 4 to 6, as transformers computes it; over ranks as in
        Qiu et al., arXiv:2501.11873.
    """
    own = getattr(outputs, "aux_loss", None)
    if not isinstance(own, torch.Tensor):
        return None
    config = model.config.get_text_config()
    labels = (batch["shift_labels"] != IGNORE_INDEX).sum()
    if group is not None:
        mask = batch.get("router_mask")
        if mask is None:  # the model was given all of these tokens
            mask = batch.get("attention_mask", torch.ones_like(batch["shift_labels"]))
            _check_formula(outputs, config.num_experts_per_tok, mask, model)
            mask = router_mask(mask, batch["shift_labels"])
        dist.all_reduce(labels, group=group)
        own = _balance(outputs.router_logits, config.num_experts_per_tok, mask, group)
    share: torch.Tensor | float = 1.0
    if num_label_tokens is not None:
        share = labels / torch.as_tensor(num_label_tokens, device=labels.device).clamp(min=1)
    return getattr(config, "router_aux_loss_coef", 0.0) * share * own.to(labels.device)


def router_mask(attention_mask: torch.Tensor, shift_labels: torch.Tensor) -> torch.Tensor:
    """Tokens that a router is balanced over, ``[B, T]``: those of rows with a label.

    A row without one may be there only because another rank has a row more.
    """
    return attention_mask * (shift_labels != IGNORE_INDEX).any(dim=1, keepdim=True)


def _balance(router_logits: Any, top_k: int, mask: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """``E * sum_e f_e p_e`` with counts over the group and this rank's probabilities."""
    num_experts = router_logits[0].shape[-1]
    chosen = router_logits[0].new_zeros(num_experts, dtype=torch.float32)
    probability, rows = chosen.clone(), chosen.new_zeros(())
    for logits_NE in router_logits:
        weight_N = mask.flatten().float()
        probability_NE = logits_NE.softmax(-1)
        picks_NK = probability_NE.topk(top_k, dim=-1).indices
        chosen = chosen.index_add(0, picks_NK.flatten(), weight_N.repeat_interleave(top_k))
        probability = probability + (probability_NE.float() * weight_N[:, None]).sum(0)
        rows = rows + weight_N.sum()
    counts = torch.cat([chosen, rows[None]]).detach()
    if group is not None:
        dist.all_reduce(counts, group=group)
    return num_experts * (counts[:-1] / counts[-1] * (probability / counts[-1])).sum()


def _check_formula(outputs: Any, top_k: int, mask: torch.Tensor, model: nn.Module) -> None:
    """Once a model: what it computes for its own tokens is what is computed here."""
    if model in _checked:
        return
    here = _balance(outputs.router_logits, top_k, mask, None)
    if not torch.allclose(here, outputs.aux_loss.float(), rtol=1e-2):
        raise ValueError(
            f"{type(model).__name__} balances its router by another formula ({float(outputs.aux_loss):.4g} where "
            f"Switch's gives {float(here):.4g}), which cannot be measured over ranks here. Set output_router_logits to "
            "false, or train with one data rank."
        )
    _checked.add(model)

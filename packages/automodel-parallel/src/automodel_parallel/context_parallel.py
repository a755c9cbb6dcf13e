"""Context parallelism: each rank holds a part of every sequence, and attention reaches across ranks.

Works on plain Hugging Face models through their attention interface, packed documents, sliding windows and grouped
key-value heads included. Keys and values travel; the mask is built here from positions and documents of the whole
batch, since transformers would take a jump in position ids for the start of a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from automodel_parallel import collectives
from automodel_parallel.report import ParallelReport
from automodel_parallel.ring_attention import ring_attention
from automodel_parallel.sequences import rebuilt_label_index

ATTENTION_NAME = "automodel_context_parallel"
_SEQUENCE_KEYS = {"input_ids": 0, "shift_labels": -100, "labels": -100, "token_type_ids": 0}
"""Keys cut along dim 1, with what fills a sequence up to a length that divides."""
_REBUILT_KEYS = ("attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Keys that describe whole sequences: what they say goes into the mask."""


@dataclass
class ContextParallelState:
    """What attention must know about the batch that is running."""

    group: dist.ProcessGroup
    ring: bool = False
    """Pass keys and values around instead of gathering them."""
    load_balanced: bool = True
    """Give each rank one early and one late chunk, since late tokens attend to more (zigzag)."""
    position_T: Tensor | None = None
    """``[T]``: index of every token of the gathered sequence, in the order in which ranks hold them."""
    document_BT: Tensor | None = field(default=None)
    """``[B, T]``: document of every gathered token; -1 for padding."""
    image_BT: Tensor | None = None
    """``[B, T]``: image of every gathered token whose tokens see one another, -1 for others; None where none do."""
    position_ids_BT: Tensor | None = None
    """``[B, T]``: positions within whole rows, in their own order."""
    own_attention: str = "sdpa"
    """The attention that the model had, for sequences that are not cut."""
    balances_router: bool = False
    """Whether the model measures how evenly its experts are chosen."""
    model_type: str = ""
    """``model_type`` of the model's config."""
    paused: bool = False
    """While true, sequences are whole and each rank attends for itself."""

    @property
    def num_chunks(self) -> int:
        """What sequence lengths must divide by."""
        return self.group.size() * (2 if self.load_balanced else 1)

    def own_positions(self) -> Tensor:
        """``[T_local]``: where this rank's tokens lie in whole rows."""
        assert self.position_T is not None
        return self.position_T.chunk(self.group.size())[self.group.rank()]

    def remember(self, document_BT: Tensor, *, images: Tensor | None = None) -> None:
        """Keep what masks are made from: documents, and images, of whole rows whose length divides."""
        rows, length = document_BT.shape
        self.position_T = _order(length, self.group.size(), self.load_balanced, document_BT.device)
        self.document_BT = document_BT[:, self.position_T]
        self.image_BT = None if images is None else images[:, self.position_T]
        self.position_ids_BT = torch.arange(length, device=document_BT.device).expand(rows, length)

    def mask(self, *, sliding_window: int | None, rank: int | None = None) -> Tensor:
        """``[B, 1, T_local, T]`` bool: which keys each of this rank's queries sees; of those of one rank, if given."""
        if self.position_T is None or self.document_BT is None:
            raise RuntimeError(
                "context-parallel attention without a sharded batch: pass each batch through context.shard_sequence()."
            )
        query_T, key_T = self.own_positions(), self._part(self.position_T, rank)
        query_document_BT = self._part(self.document_BT, self.group.rank())
        distance = query_T[:, None] - key_T[None, :]
        seen = distance >= 0
        if sliding_window is not None:
            seen &= distance < sliding_window
        if self.image_BT is not None:
            query_image_BT = self._part(self.image_BT, self.group.rank())[:, :, None]
            seen = seen | ((query_image_BT == self._part(self.image_BT, rank)[:, None, :]) & (query_image_BT >= 0))
        same = query_document_BT[:, :, None] == self._part(self.document_BT, rank)[:, None, :]
        # A padded query sees itself: a row without any key would be NaN.
        return ((seen & same) | (distance == 0))[:, None]

    def _part(self, whole: Tensor, rank: int | None) -> Tensor:
        return whole if rank is None else whole.chunk(self.group.size(), dim=-1)[rank]


def apply_context_parallel(model: nn.Module, state: ContextParallelState, *, report: ParallelReport) -> None:
    """Make the attention of a causal Hugging Face model reach over the ranks of ``state.group``, in place.

    Vision-language models keep whole rows up to their text decoder; see ``context_vision``.

    Raises: ValueError: a model without the attention interface.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise ValueError(
            f"context parallelism on {type(model).__name__}: it needs a transformers model. Set cp_size to 1."
        )
    AttentionInterface.register(ATTENTION_NAME, context_parallel_attention)
    text = config.get_text_config()
    state.own_attention, state.model_type = text._attn_implementation or "sdpa", config.model_type
    state.balances_router = bool(getattr(text, "output_router_logits", False))
    _set_attention(model, ATTENTION_NAME)
    decoder: nn.Module = model
    if text is not config:
        from automodel_parallel.context_vision import cut_at_decoder
        from automodel_parallel.tp.plans import decoder_path

        decoder = model.get_submodule(decoder_path(model))
        cut_at_decoder(model, state)
    layers = [module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "o_proj")]
    layers = layers or [module for module in decoder.modules() if hasattr(module, "is_causal")]
    for module in layers:
        module.context_parallel_state = state
    if not layers:
        raise ValueError(f"context parallelism found no attention in {type(model).__name__}. Set cp_size to 1.")
    order = ("load balanced" if state.load_balanced else "contiguous") + (", ring" if state.ring else "")
    report.add(f"context parallel: {len(layers)} attention layers over {state.group.size()} ranks, {order}")


@contextmanager
def own_attention(model: nn.Module, state: ContextParallelState) -> Iterator[None]:
    """Inside, each rank attends within the whole sequences that it is given, by the model's own attention."""
    _set_attention(model, state.own_attention)
    state.paused = True
    try:
        yield
    finally:
        state.paused = False
        _set_attention(model, ATTENTION_NAME)


def _set_attention(model: Any, name: str) -> None:
    """Of the text decoder alone: a vision tower sees whole images."""
    text = model.config.get_text_config()
    keys = [key for key in model.config.sub_configs if getattr(model.config, key, None) is text]
    model.set_attn_implementation({keys[0]: name} if keys else name)


def shard_sequence(batch: dict[str, Any], state: ContextParallelState) -> dict[str, Any]:
    """This rank's part of a batch, with global position ids; the whole is remembered for the masks.

    Sequences are filled up to a length that divides. ``label_index`` is rebuilt for the part.

    Args:
        batch: C1 batch whose labels are shifted (``shift_labels``): labels must be shifted before they are cut.

    Raises: ValueError: ``labels`` that are not shifted, or a key that cannot be cut.
    """
    _check_batch(batch)
    padding = -batch["input_ids"].shape[1] % state.num_chunks
    position_BT = F.pad(_positions(batch), (0, padding))
    state.remember(F.pad(documents(batch), (0, padding), value=-1))
    mine_T = state.own_positions()
    local = {key: value for key, value in batch.items() if key not in (*_REBUILT_KEYS, *_SEQUENCE_KEYS, "seq_idx")}
    for key, fill in _SEQUENCE_KEYS.items():
        if key in batch:
            local[key] = F.pad(batch[key], (0, padding), value=fill)[:, mine_T]
    local["position_ids"] = position_BT[:, mine_T]
    if state.balances_router:
        local["router_mask"] = F.pad(_balanced_over(batch), (0, padding))[:, mine_T]
    if "label_index" in batch:
        local["label_index"] = rebuilt_label_index(local["shift_labels"], batch["label_index"].numel())
    return local


def documents(batch: dict[str, Any]) -> Tensor:
    """Document number of each token, ``[B, T]`` int64; -1 for padding."""
    mask = batch.get("attention_mask")
    if batch.get("seq_idx") is not None:
        document = batch["seq_idx"].long().reshape(batch["input_ids"].shape)
    elif batch.get("position_ids") is not None and mask is None:
        document = (batch["position_ids"] == 0).long().cumsum(dim=1)
    else:
        document = torch.zeros_like(batch["input_ids"])
    return document if mask is None else document.masked_fill(mask == 0, -1)


def context_parallel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of this rank's queries over every rank's keys, for transformers' ``AttentionInterface``.

    Args:
        query: ``[B, heads, T_local, D]``; key and value: ``[B, kv_heads, T_local, D]``.
        attention_mask: unused: None under a name that transformers has no mask for.

    Returns: ``[B, T_local, heads, D]`` and None in place of the weights.
    Raises: ValueError: attention sinks, which this attention does not have.
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("context parallelism does not know attention sinks (s_aux). Set cp_size to 1 for this model.")
    state: ContextParallelState = module.context_parallel_state
    if state.ring:
        if dropout:
            raise ValueError("cp_method ring knows no attention dropout: set attention_dropout of the model to 0.")
        masks = partial(_mask_of_rank, state, sliding_window)
        out = ring_attention(query, key, value, group=state.group, mask=masks, scaling=scaling, softcap=softcap)
        return out.transpose(1, 2).contiguous(), None
    key = collectives.gather_for_partial(key, state.group, dim=2)
    value = collectives.gather_for_partial(value, state.group, dim=2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mask = state.mask(sliding_window=sliding_window)
    if softcap is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    else:
        out = _softcapped_attention(query, key, value, mask, dropout=dropout, scaling=scaling, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None


def _mask_of_rank(state: ContextParallelState, sliding_window: int | None, rank: int) -> Tensor:
    return state.mask(sliding_window=sliding_window, rank=rank)


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, dropout: float, scaling: float | None, softcap: float
) -> Tensor:
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, p=dropout) @ value


def _order(length: int, ranks: int, load_balanced: bool, device: torch.device) -> Tensor:
    """Positions in the order of the ranks that hold them: rank r gets chunks r and 2 * ranks - 1 - r when balanced."""
    positions = torch.arange(length, device=device)
    if not load_balanced:
        return positions
    chunks = positions.chunk(2 * ranks)
    return torch.cat([part for rank in range(ranks) for part in (chunks[rank], chunks[2 * ranks - 1 - rank])])


def _balanced_over(batch: dict[str, Any]) -> Tensor:
    """Tokens of rows with a label: what a mixture-of-experts router is balanced over."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    return mask * (batch["shift_labels"] != -100).any(dim=1, keepdim=True)


def _positions(batch: dict[str, Any]) -> Tensor:
    if batch.get("position_ids") is not None:
        return batch["position_ids"].expand_as(batch["input_ids"])
    length = batch["input_ids"].shape[1]
    return torch.arange(length, device=batch["input_ids"].device).expand_as(batch["input_ids"])


def _check_batch(batch: dict[str, Any]) -> None:
    if "labels" in batch and "shift_labels" not in batch:
        raise ValueError(
            "context parallelism got a batch with 'labels': the label of a part's last token lies on another rank. "
            "Shift first, so that the batch has 'shift_labels'."
        )

"""Attention over a sequence that lies on several ranks, with keys and values passed around a ring.

Each rank holds one other rank's keys and values at a time, and never the scores of more than a block of its queries, so
memory does not grow with the number of ranks. Softmax is accumulated as in flash attention.

Shapes: B batch, H heads, G key-value heads, T local tokens, D head size.
Source: Liu et al., "Ring Attention with Blockwise Transformers", arXiv:2310.01889; the backward is that of Dao et al.,
arXiv:2205.14135.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Mask = Callable[[int], Tensor]
"""Rank whose keys they are -> which of them each local query sees, ``[B, 1, T, T]`` bool."""
_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class _Settings:
    group: dist.ProcessGroup
    mask: Mask
    scaling: float
    softcap: float | None


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: dist.ProcessGroup,
    mask: Mask,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(scaling * q k + mask) v`` of this rank's queries over the keys of all ranks, ``[B, H, T, D]``.

    Args:
        query: ``[B, H, T, D]``; key, value: ``[B, G, T, D]``; as many tokens on each rank.
        group: ranks of the ring.
        mask: see ``Mask``; each query must see a key somewhere.
        scaling: None: ``D ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Ring.apply(query, key, value, _Settings(group, mask, scaling, softcap))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, settings: _Settings) -> Tensor:
        highest = query.new_full((*query.shape[:-1], 1), float("-inf"), dtype=torch.float32)
        total, out = torch.zeros_like(highest), torch.zeros_like(query, dtype=torch.float32)
        held = (key, value)
        for step in range(settings.group.size()):
            seen = settings.mask(_owner(settings.group, step))
            keys, values = (_for_each_head(x, query.shape[1]) for x in held)
            for rows in _blocks(query.shape[2]):
                scores = _scores(query[:, :, rows], keys, seen[:, :, rows], settings)[0]
                peak = torch.maximum(highest[:, :, rows], scores.amax(-1, keepdim=True))
                # Where nothing was seen yet, -inf minus -inf would be NaN.
                safe = peak.masked_fill(peak.isinf(), 0.0)
                weights = (scores - safe).exp()
                decay = (highest[:, :, rows] - safe).exp()
                total[:, :, rows] = total[:, :, rows] * decay + weights.sum(-1, keepdim=True)
                out[:, :, rows] = out[:, :, rows] * decay + (weights.to(values.dtype) @ values).float()
                highest[:, :, rows] = peak
            if step + 1 < settings.group.size():
                held = _pass_on(held, settings.group)
        result = (out / total).to(query.dtype)
        ctx.settings = settings
        ctx.save_for_backward(query, key, value, result, highest + total.log())
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, log_total = ctx.saved_tensors
        settings: _Settings = ctx.settings
        rowwise = (grad.float() * out.float()).sum(-1, keepdim=True)
        grad_query = torch.zeros_like(query, dtype=torch.float32)
        held = (key, value, torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32))
        for step in range(settings.group.size()):
            seen = settings.mask(_owner(settings.group, step))
            keys, values = (_for_each_head(x, query.shape[1]) for x in held[:2])
            for rows in _blocks(query.shape[2]):
                part, upstream = query[:, :, rows], grad[:, :, rows]
                scores, slope = _scores(part, keys, seen[:, :, rows], settings)
                weights = (scores - log_total[:, :, rows]).exp()
                by_weight = (upstream @ values.transpose(2, 3)).float()
                by_score = (weights * (by_weight - rowwise[:, :, rows]) * slope * settings.scaling).to(query.dtype)
                grad_query[:, :, rows] += (by_score @ keys).float()
                held[2].add_(_to_each_group(by_score.transpose(2, 3) @ part, key.shape[1]))
                held[3].add_(_to_each_group(weights.to(grad.dtype).transpose(2, 3) @ upstream, key.shape[1]))
            # One turn more than in forward brings every gradient home.
            held = _pass_on(held, settings.group)
        return grad_query.to(query.dtype), held[2].to(key.dtype), held[3].to(value.dtype), None


def _scores(query: Tensor, keys: Tensor, seen: Tensor, settings: _Settings) -> tuple[Tensor, Tensor | float]:
    """Scores in float32, -inf where not seen, and their slope in the raw product."""
    scores = (query @ keys.transpose(2, 3)).float() * settings.scaling
    slope: Tensor | float = 1.0
    if settings.softcap is not None:
        bent = torch.tanh(scores / settings.softcap)
        scores, slope = bent * settings.softcap, 1.0 - bent.square()
    return scores.masked_fill(~seen, float("-inf")), slope


def _owner(group: dist.ProcessGroup, step: int) -> int:
    return (group.rank() - step) % group.size()


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, start + _QUERY_BLOCK) for start in range(0, length, _QUERY_BLOCK))


def _for_each_head(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _to_each_group(x: Tensor, groups: int) -> Tensor:
    """The sum over the heads that share a key-value head, in float32."""
    return x.float().unflatten(1, (groups, -1)).sum(2)


def _pass_on(tensors: tuple[Tensor, ...], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Hand tensors to the next rank, and take those of the one before."""
    ranks = dist.get_process_group_ranks(group)
    after, before = ranks[(group.rank() + 1) % len(ranks)], ranks[(group.rank() - 1) % len(ranks)]
    sent = [x.contiguous() for x in tensors]
    received = [torch.empty_like(x) for x in sent]
    moves = [dist.P2POp(dist.isend, x, after, group=group) for x in sent]
    moves += [dist.P2POp(dist.irecv, x, before, group=group) for x in received]
    for work in dist.batch_isend_irecv(moves):
        work.wait()
    return tuple(received)

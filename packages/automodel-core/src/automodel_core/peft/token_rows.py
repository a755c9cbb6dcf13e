"""Rows of an embedding that train while the rest of it stays: for tokens that were added to a vocabulary.

Shapes: V vocabulary, H hidden, n trained rows. On disk this is ``peft``'s ``trainable_token_indices``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.peft.init import assign

_ON_DISK = "token_adapter.trainable_tokens_delta"


class TokenRows(nn.Module):
    """Trained values of chosen rows; a tied head shares the instance with its embedding."""

    def __init__(self, weight: torch.Tensor, indices: Sequence[int]) -> None:
        super().__init__()
        self.chosen = tuple(indices)
        self.rows = nn.Parameter(
            torch.empty(len(self.chosen), *weight.shape[1:], dtype=weight.dtype, device=weight.device)
        )
        for name, size in (("indices", len(self.chosen)), ("place", weight.shape[0])):
            self.register_buffer(name, torch.empty(size, dtype=torch.int64, device=weight.device), persistent=False)
        if weight.device.type != "meta":
            self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: torch.Tensor) -> None:
        """Start from what the base weight holds; ``place`` says for each token which trained row is its own, or -1."""
        self.indices.copy_(torch.tensor(self.chosen))
        self.place.fill_(-1)
        self.place[self.indices] = torch.arange(len(self.chosen), device=self.place.device)
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        assign(self.rows, whole[self.indices])


class _WithTokenRows(nn.Module):
    """Base of the classes that an embedding and a head get; the base weight keeps its name and its values."""

    weight: nn.Parameter
    token_rows: TokenRows
    base_class: type[nn.Module]

    def effective_weight(self) -> torch.Tensor:
        """``[V, H]`` with the trained rows in place, differentiable in them."""
        rows = self.token_rows.rows.to(self.weight.dtype)
        return self.weight.index_copy(0, self.token_rows.indices, rows)


class _EmbeddingRows(_WithTokenRows):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``[...] -> [..., H]``; what the base class does after the look-up (a scale, say) happens to all rows."""
        plain = super().forward(input_ids)
        place = self.token_rows.place[input_ids]
        rows = F.embedding(place.clamp(min=0), self.token_rows.rows).to(plain.dtype)
        scale = getattr(self, "embed_scale", None)  # Gemma's embedding multiplies by it
        if scale is not None:
            rows = rows * torch.as_tensor(scale, device=rows.device).to(rows.dtype)
        return torch.where((place >= 0).unsqueeze(-1), rows, plain)


class _HeadRows(_WithTokenRows):
    bias: nn.Parameter | None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., H] -> [..., V]``: logits of the trained rows take the place of the base's."""
        plain = super().forward(hidden)
        rows, indices = self.token_rows.rows.to(plain.dtype), self.token_rows.indices
        logits = F.linear(hidden.to(rows.dtype), rows, None if self.bias is None else self.bias[indices])
        return plain.index_copy(-1, indices, logits)


def apply_token_rows(model: Any, indices: "Sequence[int] | Mapping[str, Sequence[int]]") -> tuple[str, ...]:
    """Train some rows of the input embedding, or of the modules that a mapping names. No parameter is renamed.

    A head that is tied to the embedding follows it. Call it after the vocabulary was resized; the rows start from
    what the embedding holds.

    Returns: names of the modules with trained rows.
    Raises: ValueError: no such module, an index outside it, one named twice, or an untied copy is left behind.
    """
    named = named_rows(model, indices)
    if not named:
        return ()
    rows: dict[int, TokenRows] = {}
    for name, chosen in named.items():
        module = model.get_submodule(name)
        _check(name, module, chosen)
        shared = rows.setdefault(id(module.weight), TokenRows(module.weight, chosen))
        if shared.chosen != tuple(chosen):
            raise ValueError(
                f"trainable_token_indices gives {name} other rows than the module that its weight is tied to: one "
                "weight has one set of rows. Give both the same, or name the embedding alone."
            )
        _attach(module, shared)
    head = model.get_output_embeddings()
    if head is not None and not isinstance(head, _WithTokenRows) and id(head.weight) in rows:
        _attach(head, rows[id(head.weight)])
    return tuple(named)


def token_row_tensors(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Trained rows under ``peft``'s names; those of a tied head are its embedding's and appear once."""
    return {f"{prefix}{name}.{_ON_DISK}": module.token_rows.rows for name, module in owners(model)}


def trained_indices(model: nn.Module) -> dict[str, list[int]]:
    """Which rows train, by module name: what ``trainable_token_indices`` of ``peft`` takes."""
    return {name: list(module.token_rows.chosen) for name, module in owners(model)}


def owners(model: nn.Module) -> list[tuple[str, _WithTokenRows]]:
    """Modules with trained rows, a shared set of rows at its first owner alone."""
    seen: set[int] = set()
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _WithTokenRows) and id(module.token_rows) not in seen:
            seen.add(id(module.token_rows))
            found.append((name, module))
    return found


@torch.no_grad()
def unload_token_rows(model: nn.Module, *, write: bool) -> None:
    """Remove trained rows; with ``write`` the base weights get their values first."""
    for _, module in owners(model) if write else ():
        module.weight[module.token_rows.indices] = module.token_rows.rows.to(module.weight.dtype)
    for module in [m for m in model.modules() if isinstance(m, _WithTokenRows)]:
        del module.token_rows
        module.__class__ = module.base_class


def named_rows(model: Any, indices: "Sequence[int] | Mapping[str, Sequence[int]]") -> dict[str, list[int]]:
    """Rows by the whole name of their module; a plain list is of the input embedding.

    Raises: ValueError: a name fits no module, or several.
    """
    if not isinstance(indices, Mapping):
        embedding = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embedding)
        return {name: list(indices)} if len(indices) else {}
    named: dict[str, list[int]] = {}
    for pattern, chosen in indices.items():
        found = [n for n, m in model.named_modules() if n == pattern or n.endswith(f".{pattern}")]
        if len(found) != 1:
            raise ValueError(
                f"trainable_token_indices names {pattern!r}, which is {len(found)} modules: it must be one embedding "
                "or head. Give the whole name, such as model.embed_tokens."
            )
        named[found[0]] = list(chosen)
    return named


def _check(name: str, module: nn.Module, chosen: Sequence[int]) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(module, _WithTokenRows) or not isinstance(module, nn.Embedding | nn.Linear) or weight is None:
        raise ValueError(
            f"trainable_token_indices on {name}, a {type(module).__name__}: it takes one embedding or head without "
            "trained rows. Name model.embed_tokens, or lm_head where it is not tied."
        )
    if not chosen or len(set(chosen)) != len(chosen) or not 0 <= min(chosen) <= max(chosen) < weight.shape[0]:
        raise ValueError(
            f"trainable_token_indices {list(chosen)[:8]} for the {weight.shape[0]} rows of {name}: indices must be "
            f"different and in [0, {weight.shape[0]}). Resize the vocabulary first, or correct them."
        )


def _attach(module: nn.Module, rows: TokenRows) -> None:
    module.__class__ = _rows_class(module.__class__, isinstance(module, nn.Embedding))
    module.add_module("token_rows", rows)


@cache
def _rows_class(base: type[nn.Module], embedding: bool) -> type[_WithTokenRows]:
    mixin = _EmbeddingRows if embedding else _HeadRows
    return type(f"TokenRows{base.__name__}", (mixin, base), {"base_class": base, "__module__": __name__})

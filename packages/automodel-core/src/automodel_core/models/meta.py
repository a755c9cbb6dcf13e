"""Models without storage, and giving them some."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class WeightSource:
    """Where a model's base weights lie, for whoever loads them."""

    path: str
    """Local directory or hub id."""
    revision: str | None = None
    gguf_file: str | None = None


@torch.no_grad()
def materialize(model: Any, *, device: torch.device | str) -> None:
    """Give a transformers model on the meta device storage, right but for its parameters, which are to be loaded.

    Parameters and persistent buffers come out uninitialised. Buffers that no checkpoint holds, such as rotary
    frequencies, are computed anew, and tied weights are tied again: ``to_empty`` alone breaks both in silence.

    Args:
        model: on the meta device, sharded or not.
        device: where to.

    Raises: ValueError: a buffer that no checkpoint holds could not be computed; it is named.
    """
    model.to_empty(device=device)
    buffers = {name: buffer for name, buffer in _without_checkpoint(model) if buffer.is_floating_point()}
    for buffer in buffers.values():
        buffer.fill_(float("nan"))
    _run_own_initialisation(model, owners={name.rpartition(".")[0] for name, _ in _without_checkpoint(model)})
    left = [name for name, buffer in _without_checkpoint(model) if name in buffers and bool(buffer.isnan().any())]
    if left:
        raise ValueError(
            f"{type(model).__name__} does not compute {', '.join(left[:3])} in its _init_weights: such a buffer "
            "is in no "
            "checkpoint and cannot be made again on a real device. Load with materialize=True."
        )
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False) or model.config.tie_word_embeddings:
        model.tie_weights()


def _without_checkpoint(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    found = []
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None:
                found.append((f"{path}.{name}" if path else name, buffer))
    return found


def _run_own_initialisation(model: Any, *, owners: set[str]) -> None:
    """transformers' ``initialize_weights`` on the modules that own such buffers; parameters are marked as done."""
    tensors = [*model.parameters(), *(b for b in model.buffers())]
    lost = {id(buffer) for _, buffer in _without_checkpoint(model)}
    for tensor in tensors:
        tensor._is_hf_initialized = id(tensor) not in lost
    for path, module in model.named_modules():
        module._is_hf_initialized = path not in owners
    model.initialize_weights()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.__dict__.pop("_is_hf_initialized", None)

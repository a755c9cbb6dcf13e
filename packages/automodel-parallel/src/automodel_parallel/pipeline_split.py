"""Split a Hugging Face model into pipeline stages that keep its own forward, and its parameters' names.

A stage is the whole model with most of its parts taken out. While it runs, blocks of other stages are stand-ins that
pass hidden states on, so layer numbers (which select masks and windows) stay right; what came from the stage before is
put in at the first own block, and what goes to the next is taken out behind the last.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from automodel_parallel.tp.plans import decoder_path, text_config

_FEEDS_LATER_STAGES = ("attention_mask", "position_ids", "token_type_ids")
"""Model inputs that every stage needs, for masks and positions; the others only make the first hidden states."""


@dataclass(frozen=True)
class StageRange:
    """Decoder layers ``start`` to ``end - 1`` of ``num_layers``."""

    index: int
    start: int
    end: int
    num_layers: int

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.end == self.num_layers


def stage_ranges(num_layers: int, num_stages: int, layers_per_stage: list[int] | None = None) -> list[StageRange]:
    """Contiguous ranges; without ``layers_per_stage`` as even as can be, the first ones longer.

    Raises: ValueError: a stage would be empty, or the given lengths do not add up.
    """
    if layers_per_stage is None:
        if num_layers < num_stages:
            raise ValueError(
                f"{num_stages} pipeline stages for {num_layers} layers: a stage would be empty. Use at most "
                f"{num_layers} stages (pp_size times stages_per_rank)."
            )
        layers_per_stage = [num_layers // num_stages + (i < num_layers % num_stages) for i in range(num_stages)]
    if len(layers_per_stage) != num_stages or sum(layers_per_stage) != num_layers or min(layers_per_stage) < 1:
        raise ValueError(
            f"layers_per_stage={layers_per_stage} for {num_stages} stages and {num_layers} layers: give {num_stages} "
            f"numbers >= 1 whose sum is {num_layers}."
        )
    starts = [sum(layers_per_stage[:i]) for i in range(num_stages)]
    return [StageRange(i, start, start + n, num_layers) for i, (start, n) in enumerate(zip(starts, layers_per_stage))]


def check_injected_features(model: nn.Module, first: StageRange) -> None:
    """Raises: ValueError: image features that enter several layers (Qwen3-VL) would enter one of a later stage."""
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    injected = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    if injected >= first.end:
        raise ValueError(
            f"image features enter the first {injected} decoder layers, and the first stage has {first.end}: it needs "
            f"{injected + 1} or more. Set layers_per_stage, or fewer stages."
        )


def check_router(model: nn.Module) -> None:
    """Raises: ValueError: a router's balance loss, whose logits lie on other stages than the loss."""
    config = text_config(model)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0.0):
        raise ValueError(
            f"router_aux_loss_coef={config.router_aux_loss_coef} in a pipeline: routers lie on other stages than the "
            "loss. Set output_router_logits of the model to false, or pp_size to 1."
        )


class Stage(nn.Module):
    """One stage over a model that may hold several: ``forward`` runs its layers with the model's own forward."""

    def __init__(self, model: nn.Module, where: StageRange) -> None:
        super().__init__()
        # Plain attributes: a stage owns no parameter, the model does.
        self.__dict__["model"] = model
        self.__dict__["decoder"] = model.get_submodule(decoder_path(model))
        self.where = where
        self._inject, self._capture = _Inject(), _Capture()
        own = dict(self.decoder.layers._modules)
        stand_ins: dict[int, nn.Module] = {where.start - 1: self._inject, where.end: self._capture}
        layers = [
            own[str(i)] if where.start <= i < where.end else stand_ins.get(i, _Pass()) for i in range(where.num_layers)
        ]
        self.__dict__["layers"] = nn.ModuleList(layers)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that take part in this stage's forward; with several stages in the model, not the others'."""
        elsewhere = {id(p) for p in self.decoder.layers.parameters()} - {id(p) for p in self.layers.parameters()}
        embedding = {id(p) for p in self.model.get_input_embeddings().parameters()}
        head = {id(p) for p in self.model.get_output_embeddings().parameters()}
        if not self.where.is_first:
            elsewhere |= embedding - head
        if not self.where.is_last:
            elsewhere |= head - embedding
        return (p for p in self.model.parameters() if id(p) not in elsewhere)

    def run(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Hidden states for the next stage, ``[B, T, H]``, or the last stage's logits.

        Args:
            hidden: what the stage before returned; unused on the first.
            batch: the model's inputs, the same on every stage.
        """
        inputs = dict(batch)
        if not self.where.is_first:
            inputs = {key: batch[key] for key in _FEEDS_LATER_STAGES if key in batch} | {"inputs_embeds": hidden}
            inputs |= self._positions_of_images(batch)
            self._inject.hidden = hidden
        with self._only_own_layers():
            outputs = self.model(**(inputs | {"use_cache": False}))
        if self.where.is_last:
            return outputs.logits
        hidden, self._capture.hidden = self._capture.hidden, None
        return hidden.contiguous()

    def _positions_of_images(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Three-dimensional positions (Qwen-VL), which the model takes from ids and image sizes on the first stage."""
        index = getattr(self._around_decoder(), "get_rope_index", None)
        grids = {key: batch[key] for key in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if key in batch}
        if index is None or not grids or "position_ids" in batch:
            return {}
        taken = inspect.signature(index).parameters
        given = {key: batch[key] for key in ("mm_token_type_ids", "attention_mask") if key in batch and key in taken}
        return {"position_ids": index(batch["input_ids"], **grids, **given)[0]}

    def _around_decoder(self) -> nn.Module:
        path = decoder_path(self.model).rpartition(".")[0]
        return self.model.get_submodule(path)

    @contextmanager
    def _only_own_layers(self) -> Iterator[None]:
        decoder, swapped = self.decoder, {"layers": self.layers}
        held = decoder._modules["layers"]
        decoder._modules.update(swapped)
        head = self.model.get_output_embeddings()
        own_forward = head.__dict__.get("forward")
        if not self.where.is_last:
            # The head is a later stage's work; what the model returns here nobody reads.
            head.forward = lambda hidden: hidden.new_empty(*hidden.shape[:-1], 0)
        try:
            yield
        finally:
            decoder._modules["layers"] = held
            if not self.where.is_last:
                del head.forward
                if own_forward is not None:
                    head.forward = own_forward


def prune(model: nn.Module, ranges: list[StageRange]) -> bool:
    """Take out, in place, the parts that none of this rank's stages runs. Names of what is left do not change.

    Returns: whether the embedding and the head were one parameter, which the first and the last stage then both hold.
    """
    path = decoder_path(model)
    decoder = model.get_submodule(path)
    first, last = any(r.is_first for r in ranges), any(r.is_last for r in ranges)
    tied = decoder.embed_tokens.weight is model.get_output_embeddings().weight
    for index in list(decoder.layers._modules):
        if not any(r.start <= int(index) < r.end for r in ranges):
            del decoder.layers._modules[index]
    if not first:
        if not (tied and last):
            decoder.embed_tokens = nn.Identity()
        _drop_beside(model, path)
    if not last:
        for name, child in list(decoder.named_children()):
            if name not in ("embed_tokens", "layers") and any(True for _ in child.parameters()):
                setattr(decoder, name, nn.Identity())
        model.set_output_embeddings(nn.Identity())
    return tied


def _drop_beside(model: nn.Module, path: str) -> None:
    """Vision towers and projectors feed the first stage only."""
    head = model.get_output_embeddings()
    parent = model
    for part in path.split("."):
        for name, child in list(parent.named_children()):
            if name != part and child is not head and any(True for _ in child.parameters()):
                setattr(parent, name, nn.Identity())
        parent = getattr(parent, part)


class _Pass(nn.Module):
    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states


class _Inject(nn.Module):
    hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        assert self.hidden is not None
        hidden, self.hidden = self.hidden, None
        return hidden


class _Capture(nn.Module):
    hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.hidden = hidden_states
        return hidden_states

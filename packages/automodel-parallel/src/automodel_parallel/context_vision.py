"""Context parallelism of vision-language models: the sequence is cut where it enters the text decoder.

Images cannot be cut along the sequence, so each context rank embeds the whole rows, images included. What it keeps of
the result is its part, hence its gradients for vision tower and embeddings are one term of the sum over context ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from automodel_parallel.context_parallel import ContextParallelState, documents
from automodel_parallel.sequences import pad_sequences, rebuilt_label_index
from automodel_parallel.tp.plans import decoder_path

_IMAGES_SEE_THEMSELVES = ("gemma3",)
"""Families whose image tokens see their whole image; ``token_type_ids`` mark them."""
_WHOLE_ROWS_ONLY = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def cut_at_decoder(model: nn.Module, state: ContextParallelState) -> None:
    """Let the text decoder of a vision-language model work on this rank's part of what enters it."""

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if state.paused:
            return args, kwargs
        mine_T = state.own_positions()
        local = dict(kwargs)
        local["inputs_embeds"] = kwargs["inputs_embeds"][:, mine_T]
        assert state.position_ids_BT is not None
        positions = kwargs.get("position_ids")
        local["position_ids"] = (state.position_ids_BT if positions is None else positions)[..., mine_T]
        local["attention_mask"] = None
        if kwargs.get("visual_pos_masks") is not None:
            local |= _own_features(kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"], mine_T)
        return args, local

    model.get_submodule(decoder_path(model)).register_forward_pre_hook(cut, with_kwargs=True)


def shard_vision_batch(batch: dict[str, Any], state: ContextParallelState) -> dict[str, Any]:
    """The whole rows, filled up to a length that divides, with this rank's part of the labels.

    Raises: ValueError: packed rows that do not say which document a token belongs to.
    """
    if "seq_idx" not in batch and "attention_mask" not in batch:
        raise ValueError(
            f"context parallelism got a vision-language batch with keys {sorted(batch)}: it needs attention_mask, or "
            "seq_idx of packed rows, to keep documents apart. Use a collate function of automodel-data."
        )
    whole = pad_sequences(batch, multiple=state.num_chunks)
    state.remember(documents(whole), images=_images(whole, state))
    local = {key: value for key, value in whole.items() if key not in _WHOLE_ROWS_ONLY}
    local["shift_labels"] = whole["shift_labels"][:, state.own_positions()]
    if "label_index" in batch:
        local["label_index"] = rebuilt_label_index(local["shift_labels"], batch["label_index"].numel())
    return local


def _images(batch: dict[str, Any], state: ContextParallelState) -> Tensor | None:
    """``[B, T]``: number of the image that a token belongs to, -1 for text; None where image tokens are causal."""
    kinds = batch.get("token_type_ids")
    if kinds is None:
        return None
    if state.model_type not in _IMAGES_SEE_THEMSELVES:
        raise ValueError(
            f"context parallelism of a {state.model_type} model with token_type_ids: what they mean for its attention "
            "is not known here. Set cp_size to 1, and use tp_size or sequence_parallel for long inputs."
        )
    image = kinds == 1
    starts = image.clone()
    starts[:, 1:] &= ~image[:, :-1]
    return starts.long().cumsum(dim=1).masked_fill(~image, -1)


def _own_features(visual_BT: Tensor, injected: list[Tensor], mine_T: Tensor) -> dict[str, Any]:
    """Rows of the features that enter the first layers (Qwen3-VL), in the order of this rank's tokens."""
    number_BT = visual_BT.flatten().cumsum(dim=0).view_as(visual_BT) - 1
    own_BT = visual_BT[:, mine_T]
    rows = number_BT[:, mine_T][own_BT]
    return {"visual_pos_masks": own_BT, "deepstack_visual_embeds": [features[rows] for features in injected]}

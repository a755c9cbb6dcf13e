"""Tensor-parallel plans: which style each module of a family gets, as a table; Hugging Face's and the user's beside it.

A plan maps module paths, with ``*`` for one path component, to style names. Family rows are relative to the decoder
(``model`` of a causal LM, ``model.language_model`` of a VLM) and know more than ``_tp_plan``: the vocabulary is cut
too, the input of attention and MLP travels once instead of once per projection, and norms follow sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

Plan = dict[str, str]

_EMBEDDING = {"embed_tokens": "embedding_rowwise"}
_ATTENTION = {
    "layers.*.self_attn": "enter",
    "layers.*.self_attn.q_proj": "colwise_local",
    "layers.*.self_attn.k_proj": "colwise_local",
    "layers.*.self_attn.v_proj": "colwise_local",
    "layers.*.self_attn.o_proj": "rowwise",
}
_HEAD_NORMS = {
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
}
_MLP = {
    "layers.*.mlp": "enter",
    "layers.*.mlp.gate_proj": "colwise_local",
    "layers.*.mlp.up_proj": "colwise_local",
    "layers.*.mlp.down_proj": "rowwise",
}
_NORMS = {"layers.*.input_layernorm": "sequence_norm", "layers.*.post_attention_layernorm": "sequence_norm"}
_FEEDFORWARD_NORMS = {
    "layers.*.pre_feedforward_layernorm": "sequence_norm",
    "layers.*.post_feedforward_layernorm": "sequence_norm",
}
_MOE = {"layers.*.mlp": "repeat_whole"}

_LLAMA = _EMBEDDING | _ATTENTION | _MLP | _NORMS
_QWEN3 = _LLAMA | _HEAD_NORMS
_GEMMA2 = _LLAMA | _FEEDFORWARD_NORMS
_PHI = {
    **_EMBEDDING,
    "layers.*.self_attn": "enter",
    "layers.*.self_attn.q_proj": "colwise_local",
    "layers.*.self_attn.k_proj": "colwise_local",
    "layers.*.self_attn.v_proj": "colwise_local",
    "layers.*.self_attn.dense": "rowwise",
    "layers.*.mlp": "enter",
    "layers.*.mlp.fc1": "colwise_local",
    "layers.*.mlp.fc2": "rowwise",
    "layers.*.input_layernorm": "sequence_norm",
}

FAMILIES: dict[str, Plan] = {
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2 | _HEAD_NORMS,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _EMBEDDING | _ATTENTION | _NORMS | _MOE,
    "phi": _PHI,
    "qwen2": _LLAMA,
    "qwen2_5_vl_text": _LLAMA,
    "qwen2_vl_text": _LLAMA,
    "qwen3": _QWEN3,
    "qwen3_moe": _EMBEDDING | _ATTENTION | _HEAD_NORMS | _NORMS | _MOE,
    "qwen3_vl_text": _QWEN3,
}
"""Rows by ``model_type`` of the text config. A new family is one row here and one row of the parity suite."""


def resolve_plan(model: nn.Module, tp_plan: Mapping[str, str] | str | None = None) -> tuple[Plan, str]:
    """The plan of a model and where it comes from.

    Args:
        model: a Hugging Face model, or any module when ``tp_plan`` is given.
        tp_plan: None: the family's row, else the model's ``_tp_plan``; ``"hf"``: the model's ``_tp_plan``;
            ``"package.module:name"``: a dict there, or a function of the model that returns one; or the dict itself.

    Raises: ValueError: no plan is known, or the import path leads nowhere.
    """
    if isinstance(tp_plan, Mapping):
        return dict(tp_plan), "the given plan"
    if isinstance(tp_plan, str) and tp_plan != "hf":
        return _import_plan(model, tp_plan), tp_plan
    family = _text_model_type(model)
    if tp_plan is None and family in FAMILIES:
        return _family_plan(model, FAMILIES[family]), f"the {family} plan"
    plan = getattr(model, "_tp_plan", None) or getattr(model, "tp_plan", None)
    if not plan:
        raise ValueError(
            f"no tensor-parallel plan for {type(model).__name__} (model type {family!r}): built in are "
            f"{', '.join(FAMILIES)}, and it has no _tp_plan. Give distributed.tp_plan, or set tp_size to 1."
        )
    return dict(plan), "the model's _tp_plan"


def decoder_path(model: nn.Module) -> str:
    """Path of the text decoder inside a Hugging Face model: ``model``, or ``model.language_model`` of a VLM."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for name, module in model.named_modules():
        if module is decoder:
            return name
    raise ValueError(f"{type(model).__name__} has no text decoder (get_decoder): give tp_plan with full paths.")


def text_config(model: nn.Module) -> Any:
    """The text config of a Hugging Face model (of a VLM: its language model's), or None."""
    config = getattr(model, "config", None)
    return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config


def _family_plan(model: nn.Module, rows: Plan) -> Plan:
    prefix = decoder_path(model)
    plan = {f"{prefix}.{path}" if prefix else path: style for path, style in rows.items()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in model.named_modules():
        if head is not None and module is head:
            plan[name] = "vocab_head"
    return plan


def _text_model_type(model: nn.Module) -> str:
    return str(getattr(text_config(model), "model_type", ""))


def _import_plan(model: nn.Module, path: str) -> Plan:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    try:
        plan = getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"tp_plan={path!r}: {error}. Give 'package.module:name', or a mapping.") from error
    return dict(plan(model) if callable(plan) else plan)

"""Tiny random models of many architectures."""

import torch
from transformers import AutoConfig

from automodel_core import NeMoAutoModelForCausalLM

TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 8, "attention_dropout": 0.0,
}  # fmt: skip
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": False}

FAMILIES: dict[str, dict] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {}, "phi3": {}, "olmo2": {}, "starcoder2": {},
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "glm4": {"partial_rotary_factor": 0.5},
    "mixtral": _MOE,
    "gpt_oss": _MOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "smollm3": {},
}  # fmt: skip


def config(family: str, **changes):
    return AutoConfig.for_model(family, **(TINY | FAMILIES[family] | changes))


def build(family: str, **changes):
    """A model of the family in evaluation mode, random weights of a size that makes logits differ."""
    torch.manual_seed(0)
    model = NeMoAutoModelForCausalLM.from_config(config(family, **changes), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    return model

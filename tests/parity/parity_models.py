"""Tiny random models of each family, and ragged, partly masked windows of rows for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

VOCAB, ROWS, STEPS, IMAGE_TOKEN, IMAGE_TOKENS = 96, 8, 3, 95, 4

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_EXTRA = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {
        "tie_word_embeddings": True,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0},
}
MODELS = (*_EXTRA, "llava")

_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_EXPERTS |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1, "tie_word_embeddings": False}
_LATENT = {"q_lora_rank": 24, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
FAMILIES = {
    "cohere2": {"tie_word_embeddings": True, "sliding_window": 6, "logit_scale": 1.0},
    "deepseek_v3": {**_EXPERTS, **_LATENT, "num_key_value_heads": 4, "head_dim": 4},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "glm4_moe": _EXPERTS,
    "granite": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False, "sliding_window": 6},
    "olmo2": {"tie_word_embeddings": False},
    "olmoe": {"tie_word_embeddings": False, "num_experts": 4, "num_experts_per_tok": 2},
    "phi": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3_moe": {
        "tie_word_embeddings": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
    "smollm3": {"tie_word_embeddings": True},
}
"""Further families, for the tensor-parallel plans: built in here, or transformers' own."""


def build_model(name: str) -> nn.Module:
    """The same weights on every call and every rank."""
    torch.manual_seed(0)
    if name == "llava":
        return _build_llava()
    config = AutoConfig.for_model(name, **(_COMMON | {**_EXTRA, **FAMILIES}[name]))
    attention = "eager" if name == "gemma2" else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def _build_llava() -> nn.Module:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_COMMON, tie_word_embeddings=False),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    # The last vision layer's post norm and the class token feed nothing: they cannot move.
    model.get_submodule("model.vision_tower").requires_grad_(False)
    return model


def windows(name: str, *, packed: bool) -> list[list[dict[str, Tensor]]]:
    """``STEPS`` windows of ``ROWS`` rows; later rows of a window carry far more labels than earlier ones."""
    generator = torch.Generator().manual_seed(1)
    return [[_row(name, index, packed, generator) for index in range(ROWS)] for _ in range(STEPS)]


def _row(name: str, index: int, packed: bool, generator: torch.Generator) -> dict[str, Tensor]:
    length = 16 if packed else int(torch.randint(9, 17, (), generator=generator))
    ids = torch.randint(3, VOCAB - 1, (length,), generator=generator)
    labels = ids.clone()
    labels[: 2 if index >= ROWS // 2 else length - 3] = -100
    row = {"input_ids": ids, "labels": labels}
    if packed:  # documents that cross the boundary between two context ranks
        cut = int(torch.randint(4, 12, (), generator=generator))
        row["position_ids"] = torch.cat([torch.arange(cut), torch.arange(length - cut)])
        labels[cut] = -100
    if name == "llava":
        ids[1 : 1 + IMAGE_TOKENS] = IMAGE_TOKEN
        labels[1 : 1 + IMAGE_TOKENS] = -100
        row["pixel_values"] = torch.randn(1, 3, 8, 8, generator=generator)
    return row


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad on the right to the longest row; labels are shifted."""
    longest = max(row["input_ids"].numel() for row in rows)
    batch = {"input_ids": torch.zeros(len(rows), longest, dtype=torch.long)}
    batch["shift_labels"] = torch.full((len(rows), longest), -100)
    packed = "position_ids" in rows[0]
    extra = "position_ids" if packed else "attention_mask"
    batch[extra] = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        length = row["input_ids"].numel()
        batch["input_ids"][i, :length] = row["input_ids"]
        batch["shift_labels"][i, : length - 1] = row["labels"][1:]
        batch[extra][i, :length] = row["position_ids"] if packed else 1
    if "pixel_values" in rows[0]:
        batch["pixel_values"] = torch.cat([row["pixel_values"] for row in rows])
    return batch

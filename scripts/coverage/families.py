"""The families that are tried, each at a tiny size from its configuration class alone."""

from types import MappingProxyType

VOCAB = 128
CAUSAL = """
apertus arcee aria_text bamba bitnet biogpt bloom codegen cohere cohere2 dbrx deepseek_v2 deepseek_v3 diffllama
doge dots1 ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1 flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense hunyuan_v1_moe internlm3 jetmoe
lfm2 llama llama4_text mamba mamba2 minimax ministral mistral mixtral mpt nemotron olmo olmo2 olmo3 olmoe opt
persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma seed_oss smollm3 stablelm
starcoder2 xglm
""".split()
IMAGE_TEXT = """
aya_vision cohere2_vision fuyu gemma3 glm4v idefics2 idefics3 internvl kosmos-2 lfm2_vl llava llava_next
llava_onevision mistral3 mllama ovis2 paligemma qwen2_5_vl qwen2_vl qwen3_vl smolvlm vipllava
""".split()
# What makes any configuration small; a key that a family lacks is left out.
SMALL = {
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "max_position_embeddings": 128, "n_positions": 128,
    "max_seq_len": 128, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 64, "n_inner": 64, "ffn_dim": 64, "ffn_hidden_size": 64, "intermediate_size_mlp": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "depth": 2, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "attention_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "global_head_dim": 8, "rotary_dim": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "lru_width": 32, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "state_size": 8, "mamba_d_state": 8, "mamba_d_head": 16,
    "mamba_n_heads": 4, "mamba_d_ssm": 64, "mamba_n_groups": 1, "n_groups": 1, "time_step_rank": 4,
    "sliding_window": 16, "image_size": 28, "patch_size": 14, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "out_hidden_size": 32,
}  # fmt: skip
NESTED = ("text_config", "vision_config", "audio_config", "perceiver_config")
# Where small sizes must agree with one another in a way that a family has to itself.
_MROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}}
OWN = {
    "bamba": {"attn_layer_indices": [1], "attn_rotary_emb": 4},
    "codegen": {"rotary_dim": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "dots1": {"n_shared_experts": 1},
    "glm4v": _MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "kosmos-2": {"latent_query_num": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
}


def tiny_config(kind):
    """The family's configuration at a tiny size."""
    from transformers import AutoConfig

    return shrunk(type(AutoConfig.for_model(kind)), OWN.get(kind, {}))


def shrunk(config_class, own=MappingProxyType({})):
    """An instance of a configuration class, small, its nested configurations small as well."""
    default = config_class()
    aliases = getattr(default, "attribute_map", {})
    fixed = {key for key in SMALL if isinstance(getattr(config_class, key, None), property)}
    keys = {key: SMALL[key] for key in SMALL if hasattr(default, key) and key not in aliases and key not in fixed}
    for name in NESTED:
        nested = getattr(default, name, None)
        if hasattr(nested, "to_dict"):
            keys[name] = {**shrunk(type(nested)).to_dict(), **own.get(name, {})}
    for name in (
        "image_token_id",
        "image_token_index",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    ):
        if hasattr(default, name) and name not in aliases:
            keys[name] = VOCAB - 1 - len(name) % 5
    return config_class(**{**own, **keys, **{key: value for key, value in own.items() if key not in NESTED}})

"""What a family needs that the others do not, and why a check fails where that is known."""

EXCLUDE = {
    # On mixtures that transformers stores fused, peft reads these names as the experts, wherever they stand.
    **{
        family: ["*shared*", "*mlp.*_proj"]
        for family in "deepseek_v2 deepseek_v3 dots1 ernie4_5_moe glm4_moe hunyuan_v1_moe qwen3_next".split()
    },
    # The router is a linear layer that returns two tensors.
    "llama4_text": ["*router*"],
    "phimoe": ["*router*"],
    # peft refuses adapters on a Mamba block's out_proj.
    "falcon_h1": ["*.out_proj"],
    "mamba": ["*.out_proj"],
    "mamba2": ["*.out_proj"],
}
"""``exclude_modules`` with which LoRA on every other linear layer works."""

THROUGH_PEFT = {"gpt2": ["c_attn", "c_fc", "c_proj"]}
"""Families without linear layers to adapt: ``target_modules`` of a ``peft.LoraConfig``, which ``peft:`` takes, too."""

NEEDS_IMAGE = {"kosmos-2"}
"""Families that take no batch without a picture."""

EXPLAINED = {("doge", "tp"): "its own plan cuts the heads and leaves the mask that they are added to whole"}
"""Why a check fails, by family and check."""

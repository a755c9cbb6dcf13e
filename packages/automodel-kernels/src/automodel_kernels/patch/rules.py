"""The table of rules: which module class gets which op.

A rule names the classes it knows. A class with a known name is still tried on random numbers before it is touched
(:mod:`automodel_kernels.patch.check`), so a library release that changes a forward is noticed, not trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from automodel_kernels.patch import forwards

LLAMA_NORMS = (
    "CohereRMSNorm", "Glm4RMSNorm", "GlmRMSNorm", "GraniteRMSNorm", "Idefics3RMSNorm", "InternVLVisionRMSNorm",
    "LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Olmo2RMSNorm", "Olmo3RMSNorm", "Phi3RMSNorm", "PixtralRMSNorm",
    "Qwen2RMSNorm", "Qwen2MoeRMSNorm", "Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3MoeRMSNorm", "Qwen3RMSNorm",
    "Qwen3VLTextRMSNorm", "SmolLM3RMSNorm",
)  # fmt: skip
GEMMA_NORMS = ("Gemma2RMSNorm", "Gemma3RMSNorm", "GemmaRMSNorm", "Qwen3NextRMSNorm")
GATED_MLPS = (
    "Gemma2MLP", "Gemma3MLP", "GemmaMLP", "GraniteMLP", "LlamaMLP", "MistralMLP", "Olmo2MLP", "Olmo3MLP", "PixtralMLP",
    "Qwen2MLP", "Qwen2MoeMLP", "Qwen2_5_VLMLP", "Qwen3MLP", "Qwen3MoeMLP", "Qwen3VLTextMLP", "SmolLM3MLP",
)  # fmt: skip
FUSED_GATED_MLPS = ("Glm4MLP", "GlmMLP", "Phi3MLP")
ROPE_ATTENTIONS = (
    "Gemma2Attention", "Gemma3Attention", "GemmaAttention", "GraniteAttention", "LlamaAttention", "MistralAttention",
    "MixtralAttention", "Olmo2Attention", "Olmo3Attention", "Phi3Attention", "Qwen2Attention", "Qwen2MoeAttention",
    "Qwen2VLAttention", "Qwen2_5_VLAttention", "Qwen3Attention", "Qwen3MoeAttention", "Qwen3VLTextAttention",
    "SmolLM3Attention",
)  # fmt: skip
PLAIN_HEADS = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Olmo2ForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """``build(module, strict)`` returns the new forward; ``unfit(module)`` says why not, or an empty string."""

    op: str
    classes: tuple[str, ...]
    build: Callable[[nn.Module, bool], Callable[..., object]]
    unfit: Callable[[nn.Module], str] = lambda module: ""


RULES = (
    Rule("rms_norm", LLAMA_NORMS, forwards.llama_rms_norm, forwards.norm_unfit),
    Rule("rms_norm", GEMMA_NORMS, forwards.gemma_rms_norm, forwards.norm_unfit),
    Rule("glu", GATED_MLPS, forwards.gated_mlp, forwards.gated_mlp_unfit),
    Rule("glu", FUSED_GATED_MLPS, forwards.fused_gated_mlp, forwards.fused_gated_mlp_unfit),
    Rule("rope", ROPE_ATTENTIONS, forwards.rope_attention, forwards.rope_unfit),
)
OPS = ("glu", "linear_cross_entropy", "lora", "lora_mlp", "rms_norm", "rope")
DEFAULT_OPS = ("glu", "lora", "rms_norm", "rope")
"""What changes neither outputs nor which modules are called: ``linear_cross_entropy`` returns no logits with a loss,
and ``lora_mlp`` computes three projections without calling their modules."""

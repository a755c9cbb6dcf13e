"""Which model families of transformers work: build each at a tiny size, train it, save it, read it back in plain HF.

    python scripts/coverage.py            # all families, about ten minutes of one core
    python scripts/coverage.py llama phi3 # some, printed and not written

Per family, from its configuration class alone and random weights, in float32 on the CPU:

- lora: three steps of LoRA on every linear layer lower the loss, and plain transformers with peft read the adapter back
  to the same logits
- full: three steps on every parameter lower the loss, and ``from_pretrained`` of plain transformers reads the export
  back to the same logits
- kernels: the model with fused layers gives the same logits ("none": it has no layer that a kernel knows)

Writes docs/coverage.json and docs/coverage.md. Image-text families are trained on text alone here.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import MappingProxyType

import torch

ROOT = Path(__file__).resolve().parent.parent
MAX_PARAMETERS = 8_000_000
VOCAB = 128
STEPS = 3
CHECKS = ("lora", "full", "kernels")
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
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
}


_SHARED = (
    "peft reads the names gate_proj, up_proj and down_proj as the fused experts of a mixture, and leaves out shared "
    "experts and dense layers of these names; exclude them: `exclude_modules: ['*shared*', '*.mlp.*_proj']`"
)
_ROUTER = "the router is a linear layer that returns two tensors; exclude it: `exclude_modules: ['*router*']`"
_MAMBA = "peft refuses adapters on a Mamba block's out_proj; exclude it: `exclude_modules: ['*.out_proj']`"
EXPLAINED = {
    **dict.fromkeys("deepseek_v2 deepseek_v3 dots1 ernie4_5_moe glm4_moe hunyuan_v1_moe qwen3_next".split(), _SHARED),
    **dict.fromkeys("llama4_text phimoe".split(), _ROUTER),
    **dict.fromkeys("falcon_h1 mamba mamba2".split(), _MAMBA),
    "gpt2": "its projections are Conv1D modules, not linear layers",
    "kosmos-2": "it takes no batch without a picture",
}
"""Why a check fails, where that is known."""


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


def build(config, is_vlm):
    """A float32 model of the configuration; refused where it is not tiny."""
    from automodel_core import NeMoAutoModelForCausalLM, NeMoAutoModelForImageTextToText

    auto = NeMoAutoModelForImageTextToText if is_vlm else NeMoAutoModelForCausalLM
    shape = auto.from_config(config, dtype=torch.float32, materialize=False)
    count = sum(parameter.numel() for parameter in shape.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters: SMALL does not reach a size of this family")
    torch.manual_seed(0)
    return auto.from_config(config, dtype=torch.float32)


def plain_class(is_vlm):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM


def tokens():
    return torch.randint(3, VOCAB - 16, (2, 16), generator=torch.Generator().manual_seed(0))


def train(model):
    """A few steps; raises where the loss is not finite or does not fall."""
    from automodel_core.loss import MaskedCrossEntropy, count_label_tokens, forward_loss, shift_labels

    batch = shift_labels({"input_ids": tokens(), "labels": tokens()})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    model.train()
    for _ in range(STEPS + 1):
        loss = forward_loss(model, batch, MaskedCrossEntropy(), count_label_tokens([batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss did not fall: {losses[0]:.4f} -> {losses[-1]:.4f}")
    model.eval()


@torch.no_grad()
def same_logits(ours, theirs):
    """Raises where two models differ on the same tokens."""
    torch.testing.assert_close(
        theirs.eval()(input_ids=tokens()).logits, ours.eval()(input_ids=tokens()).logits, rtol=1e-4, atol=1e-4
    )


def check_lora(config, is_vlm):
    """LoRA through peft and back."""
    from peft import PeftModel

    from automodel_ckpt import save_adapter
    from automodel_core.peft import PeftConfig, adapter_config, adapter_state_dict, apply_lora

    model = build(config, is_vlm)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/base")
        lora = PeftConfig(dim=4, alpha=8)
        apply_lora(model, lora)
        train(model)
        save_adapter(f"{folder}/adapter", adapter_state_dict(model), adapter_config(model, lora))
        base = plain_class(is_vlm).from_pretrained(f"{folder}/base", dtype=torch.float32)
        same_logits(model, PeftModel.from_pretrained(base, f"{folder}/adapter"))


def check_full(config, is_vlm):
    """Every parameter, exported and read back."""
    from automodel_ckpt import export_hf

    model = build(config, is_vlm)
    train(model)
    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, f"{folder}/out")
        same_logits(model, plain_class(is_vlm).from_pretrained(f"{folder}/out", dtype=torch.float32))


def check_kernels(config, is_vlm):
    """Fused layers against the family's own."""
    from automodel_kernels import patch_model_with_kernel_optimizations

    plain, patched = build(config, is_vlm), build(config, is_vlm)
    try:
        patch_model_with_kernel_optimizations(patched)
    except ValueError as error:
        if "nothing" in str(error).lower() or "no module" in str(error).lower():
            return "none"
        raise
    same_logits(plain, patched)
    return None


def check_family(kind, is_vlm):
    """One row: a check's value is ``ok``, ``none``, or why it failed."""
    row = {"family": kind, "task": "image-text" if is_vlm else "causal", "seconds": 0.0}
    start = time.perf_counter()
    checks = {"lora": check_lora, "full": check_full, "kernels": check_kernels}
    for name in CHECKS:
        try:
            row[name] = checks[name](tiny_config(kind), is_vlm) or "ok"
        except Exception as error:  # noqa: BLE001 - whatever a family does wrong is what the table is for
            first = str(error).strip().splitlines() or [""]
            row[name] = f"{type(error).__name__}: {first[0][:160]}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def markdown(rows):
    """The table, and why what failed did."""
    import transformers

    green = {task: [r for r in rows if r["task"] == task and not failures(r)] for task in ("causal", "image-text")}
    tried = {task: sum(r["task"] == task for r in rows) for task in green}
    lines = [
        "# Model coverage", "",
        f"With transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}: "
        f"{len(green['causal'])} of {tried['causal']} causal language families and {len(green['image-text'])} of "
        f"{tried['image-text']} image-text families pass every check. Written by `python scripts/coverage.py`, which "
        "says what the checks are. Image-text families are trained on text alone here.", "",
        "| family | task | LoRA | full | kernels |", "|---|---|---|---|---|",
    ]  # fmt: skip
    mark = {"ok": "yes", "none": "none fit"}
    for row in rows:
        cells = " | ".join(mark.get(row[name], "no") for name in CHECKS)
        lines.append(f"| {row['family']} | {row['task']} | {cells} |")
    lines += ["", "## What failed", ""]
    for row in rows:
        lines += [f"- {row['family']}, {name}: `{row[name].replace('`', '')}`" for name in failures(row)]
        if failures(row) and row["family"] in EXPLAINED:
            lines[-1] += f": {EXPLAINED[row['family']]}."
    return "\n".join(lines) + "\n"


def failures(row):
    """Names of the checks that failed."""
    return [name for name in CHECKS if row[name] not in ("ok", "none")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    wanted = parser.parse_args().families
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # a family that does not get small must not take all
    rows = []
    for kind, is_vlm in [*((kind, False) for kind in CAUSAL), *((kind, True) for kind in IMAGE_TEXT)]:
        if wanted and kind not in wanted:
            continue
        rows.append(check_family(kind, is_vlm))
        print(json.dumps(rows[-1]), flush=True)
    if not wanted:
        (ROOT / "docs/coverage.json").write_text(json.dumps(rows, indent=1) + "\n")
        (ROOT / "docs/coverage.md").write_text(markdown(rows))
    return int(bool(wanted) and any(failures(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())

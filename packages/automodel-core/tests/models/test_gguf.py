"""A model read from a GGUF file that the gguf package wrote here."""

import pytest
import torch
import transformers
from core_families import build

from automodel_core import NeMoAutoModelForCausalLM

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight, heads):
    """Rows of query and key in the order that GGUF's rotation wants."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write(path, model):
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tensors = {
        "token_embd": model.model.embed_tokens.weight,
        "output_norm": model.model.norm.weight,
        "output": model.lm_head.weight,
    }
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in _NAMES.items():
            weight = layer.get_submodule(ours).weight
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            tensors[f"blk.{index}.{theirs}"] = interleaved(weight, heads) if heads else weight
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model = build("llama")
    directory = tmp_path_factory.mktemp("gguf")
    write(directory / "tiny.gguf", model)
    return directory, model


def test_logits_equal_the_written_model_and_transformers_own(written):
    directory, source = written
    model = NeMoAutoModelForCausalLM.from_pretrained(
        directory, gguf_file="tiny.gguf", dtype="float32", attn_implementation="eager"
    ).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, gguf_file="tiny.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.arange(3, 40)[None]
    logits = model(ids).logits
    assert torch.equal(logits, theirs(ids).logits)
    torch.testing.assert_close(logits, source(ids).logits, rtol=1e-5, atol=1e-5)


def test_it_is_saved_and_read_back_as_an_ordinary_model(written, tmp_path):
    directory, source = written
    model = NeMoAutoModelForCausalLM.from_pretrained(directory, gguf_file="tiny.gguf", dtype="float32")
    model.save_pretrained(tmp_path)
    again = NeMoAutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(again(ids).logits, source(ids).logits, rtol=1e-5, atol=1e-5)

"""Base weights from a GGUF file that the gguf package writes here, half of it quantized."""

import pytest
import torch

from automodel_ckpt import StateMismatch, load_base_weights
from automodel_ckpt.faults import ranks

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
transformers = pytest.importorskip("transformers")

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 51,
}


def _llama(seed, **extra):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, **extra))


def _write(path, model, *, head=True):
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
    tensors = {"token_embd": model.model.embed_tokens.weight, "output_norm": model.model.norm.weight}
    if head:
        tensors["output"] = model.lm_head.weight
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in _NAMES.items():
            weight = layer.get_submodule(ours).weight
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            turned = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else weight
            tensors[f"blk.{index}.{theirs}"] = turned
    for name, tensor in tensors.items():
        data, kind = tensor.detach().contiguous().numpy(), None
        if "ffn_up" in name or "attn_q" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _theirs(path):
    return transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("tied", [False, True])
def test_bits_are_those_of_transformers_own_loader(tmp_path, tied):
    source = _llama(0, tie_word_embeddings=tied)
    _write(tmp_path / "tiny.gguf", source, head=not tied)
    target = _llama(1, tie_word_embeddings=tied)
    report = load_base_weights(target, tmp_path / "tiny.gguf")
    expected = _theirs(tmp_path / "tiny.gguf").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())
    exact = source.state_dict()["model.layers.1.mlp.gate_proj.weight"]  # not quantized
    assert torch.equal(target.state_dict()["model.layers.1.mlp.gate_proj.weight"], exact)
    assert (report.missing, report.loaded) == ((), 21 - tied)


def test_shards_and_a_model_that_is_larger_than_the_file(fast_path):
    _write(fast_path / "tiny.gguf", _llama(0))

    def work(rank):
        from torch.distributed.fsdp import fully_shard

        expected, sharded = _theirs(fast_path / "tiny.gguf"), _llama(1)
        fully_shard(sharded)
        load_base_weights(sharded, fast_path / "tiny.gguf")
        pairs = zip(sharded.state_dict().values(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(ours.full_tensor(), theirs) for ours, theirs in pairs)

    ranks.run(2, work)
    deeper = _llama(1)
    deeper.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(StateMismatch, match=r"does not hold this model: missing \['model\.extra\.bias'"):
        load_base_weights(deeper, fast_path / "tiny.gguf")

"""Merging an adapter with token rows, added ones and others, gives what PEFT computes."""

import json

import pytest
import torch

from automodel_ckpt import StateMismatch, grow_for_adapter, merge, read_back, save_adapter

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NEW = [50, 51]


def base_of(tmp_path, *, tied):
    """A model of 50 rows on disk, in two files."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base", max_shard_size="12KB")
    return tmp_path / "base"


def adapter_for(base, directory, *, rows=52, **chosen):
    """An adapter that PEFT made on a base of ``rows`` rows, and its logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if rows > 50:
        model.resize_token_embeddings(rows)
    made = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **chosen)
    model = peft.get_peft_model(model, made).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "lora" in name else 1.0))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    tensors = {name: t.contiguous() for name, t in state_of(model).items()}
    return save_adapter(directory, tensors, {**config, **chosen}), model


def state_of(model):
    return peft.get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.mark.parametrize(
    "tied, chosen",
    [
        (True, {"trainable_token_indices": NEW}),
        (True, {"trainable_token_indices": [3, *NEW]}),
        (False, {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": [7, *NEW]}}),
        (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_merged_rows_give_pefts_logits(tmp_path, tied, chosen):
    base = base_of(tmp_path, tied=tied)
    adapter, model = adapter_for(base, tmp_path / "adapter", **chosen)
    out = tmp_path / "out"
    merge(base, adapter, out)
    ids = torch.tensor([[3, 50, 7, 51, 9]])
    merged = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert merged.config.vocab_size == 52
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    read_back(out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in unique(merged.state_dict()))


def unique(state):
    return {t.data_ptr(): t for t in state.values()}.values()


def test_rows_that_are_there_need_no_growth(tmp_path):
    base = base_of(tmp_path, tied=True)
    adapter, model = adapter_for(base, tmp_path / "adapter", rows=50, trainable_token_indices=[3, 9])
    before = (base / "config.json").read_text()
    merge(base, adapter, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == before
    ids = torch.tensor([[3, 7, 9]])
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "chosen, told",
    [
        ({"trainable_token_indices": NEW}, "model.embed_tokens.weight grow .* and the head does not"),
        ({"trainable_token_indices": {"embed_tokens": [51], "lm_head": [51]}}, r"none for \[50\]"),
    ],
)
def test_what_would_leave_rows_without_values_is_refused(tmp_path, chosen, told):
    base = base_of(tmp_path, tied=False)
    adapter, _ = adapter_for(base, tmp_path / "adapter", **chosen)
    with pytest.raises(StateMismatch, match=told):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert grow_for_adapter(transformers.AutoModelForCausalLM.from_pretrained(base), adapter) == 52

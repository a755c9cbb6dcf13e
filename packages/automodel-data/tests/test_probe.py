"""Packed documents are isolated on plain Hugging Face models, and where they are not, the probe says so."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from automodel_data.collate import default_collater
from automodel_data.errors import DataError
from automodel_data.llm.mock import build_unpacked_dataset
from automodel_data.packing import PackedSequence
from automodel_data.probe import measure_leak, refuse_leaking_packs

VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA = {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **GEMMA)),
}
ATTENTIONS = [
    "eager",
    "sdpa",
    pytest.param("flex_attention", marks=pytest.mark.more),
]  # flex compiles for half a minute


@pytest.fixture(autouse=True)
def fresh_compiler():
    """A second length makes flex attention compile for any length, which inductor's C++ template gets wrong."""
    torch.compiler.reset()


def build(family: str, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    model.set_attn_implementation(attention)
    return model.eval()


def token_losses(model, batch) -> torch.Tensor:
    """Loss of each token ``[B, T]`` at its own position; 0 where there is no label."""
    labels = batch.pop("labels")
    for key in ("label_index", "sample_ids"):
        batch.pop(key, None)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return torch.nn.functional.pad(losses, (1, 0))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_equals_unpacked_loss_of_each_document(family, attention):
    model = build(family, attention)
    rows = build_unpacked_dataset(num_sentences=9, vocab_size=VOCAB, mean_len=22)
    packed = PackedSequence(rows, packed_sequence_size=64).pack()
    losses = token_losses(model, default_collater([packed[i] for i in range(len(packed))], pad_seq_len_divisible=16))
    for pack in range(len(packed)):
        start = 0
        for document, n in zip(packed[pack]["sample_id"], packed[pack]["seq_lens"]):
            alone = token_losses(model, default_collater([rows[document]]))[0]
            assert alone.sum() > 0
            torch.testing.assert_close(losses[pack, start : start + n], alone, atol=1e-5, rtol=1e-5)
            start += n


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_changing_a_document_changes_no_other(family, attention):
    report = refuse_leaking_packs(build(family, attention), vocab_size=VOCAB)
    assert report.max_leak <= 1e-5 < report.own_change


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_value_cache_leaks_and_the_probe_refuses_it(family):
    model = build(family, "sdpa")
    with pytest.raises(DataError, match=r"not isolated in .*'sdpa'.*use_cache=False"):
        refuse_leaking_packs(model, vocab_size=VOCAB, forward_kwargs={"use_cache": True})


def test_an_all_ones_mask_leaks_and_the_probe_sees_it():
    mask = {"attention_mask": torch.ones(1, 96, dtype=torch.long)}
    assert not measure_leak(build("llama", "sdpa"), vocab_size=VOCAB, forward_kwargs=mask).isolated


def test_the_probe_keeps_the_models_mode():
    model = build("llama", "eager").train()
    measure_leak(model, vocab_size=VOCAB)
    assert model.training

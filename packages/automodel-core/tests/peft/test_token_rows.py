"""Rows of added tokens train beside a LoRA, and the peft library reads them."""

import copy
import json

import peft
import pytest
import torch
from core_families import build
from safetensors.torch import load_file, save_file

from automodel_core.loss import FusedLinearCrossEntropy, MaskedCrossEntropy, forward_loss, shift_labels
from automodel_core.peft import (
    PeftConfig,
    adapter_config,
    adapter_state_dict,
    apply_lora,
    config_from_adapter,
    load_adapter_state_dict,
    merge_lora,
    unload_lora,
)

OLD, NEW = 97, [97, 98, 99]
INDICES = {
    "tied": NEW,
    "both": {"embed_tokens": NEW, "lm_head": NEW},
    "untied": {"embed_tokens": NEW, "lm_head": NEW},
    "embedding": NEW,
    "scaled": NEW,
}


def resized(kind):
    family = "gemma3_text" if kind == "scaled" else "llama"
    model = build(family, tie_word_embeddings=kind in ("tied", "both", "scaled"))
    torch.manual_seed(4)
    model.resize_token_embeddings(OLD + len(NEW))
    return model.eval()


def config(kind):
    return PeftConfig(target_modules=["q_proj", "v_proj"], dim=4, trainable_token_indices=INDICES[kind])


@pytest.fixture
def rows_batch(batch):
    """The shared batch with added tokens among inputs and labels."""
    ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
    ids[0, 7], ids[1, 4], ids[2, 2] = NEW
    labels[0, 7], labels[1, 4] = NEW[:2]
    return batch | {"input_ids": ids, "labels": labels}


def logits(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def train(model, batch, loss_fn, steps=6):
    """SGD, so that gradients and not their signs decide; returns the losses."""
    trained, losses = [p for p in model.parameters() if p.requires_grad], []
    optimizer = torch.optim.SGD(trained, lr=0.02)
    for _ in range(steps):
        loss = forward_loss(model, shift_labels(batch), loss_fn, 14)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    return losses


@pytest.mark.parametrize("kind", sorted(INDICES))
def test_training_equals_pefts_and_its_files_are_read(kind, rows_batch, tmp_path):
    model, base = resized(kind), resized(kind)
    names = set(dict(model.named_parameters()))
    report = apply_lora(model, config(kind))
    assert names <= set(dict(model.named_parameters()))
    assert "token rows of: model.embed_tokens" in str(report)
    torch.testing.assert_close(logits(model, rows_batch), logits(base, rows_batch))
    save_file({k: v.contiguous() for k, v in adapter_state_dict(model).items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(model, config(kind))))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    ours = train(model, rows_batch, FusedLinearCrossEntropy())
    assert ours == pytest.approx(train(theirs, rows_batch, MaskedCrossEntropy()), rel=1e-5)
    tensors, wanted = adapter_state_dict(model), peft.get_peft_model_state_dict(theirs)
    assert set(tensors) == set(wanted)
    for key, tensor in wanted.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-4, atol=1e-5)
    rows = tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert (rows - base.get_input_embeddings().weight[NEW]).abs().max() > 1e-3
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    torch.testing.assert_close(logits(model, rows_batch), logits(theirs, rows_batch), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_peft_goes_on_training_here(rows_batch, tmp_path):
    made = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=NEW, init_lora_weights=False)
    theirs = peft.get_peft_model(resized("tied"), made)
    train(theirs, rows_batch, MaskedCrossEntropy())
    theirs.save_pretrained(tmp_path)
    model = resized("tied")
    apply_lora(model, config_from_adapter(json.loads((tmp_path / "adapter_config.json").read_text())))
    load_adapter_state_dict(model, load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(model, rows_batch), logits(theirs, rows_batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_merging_writes_the_rows_and_unloading_forgets_them(kind, rows_batch):
    model, base = resized(kind), resized(kind)
    apply_lora(model, config(kind))
    train(model, rows_batch, MaskedCrossEntropy())
    other, want = copy.deepcopy(model), logits(model, rows_batch)
    merge_lora(model, unload=True)
    assert set(dict(model.named_parameters())) == set(dict(base.named_parameters()))
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    torch.testing.assert_close(logits(model, rows_batch), want, rtol=1e-4, atol=1e-5)
    unload_lora(other)
    assert torch.equal(logits(other, rows_batch), logits(base, rows_batch))


@pytest.mark.parametrize(
    "indices, said",
    [
        ([96, 100], r"indices must be different and in \[0, 100\)"),
        ([3, 3], "must be different"),
        ({"embed": [1]}, "names 'embed', which is 0 modules"),
        ({"embed_tokens": [1], "lm_head": [2]}, "one weight has one set of rows"),
        ({"norm": [1]}, "a LlamaRMSNorm: it takes one embedding or head"),
    ],
)
def test_rows_that_are_not_there_are_refused(indices, said):
    with pytest.raises(ValueError, match=said):
        apply_lora(resized("tied"), PeftConfig(target_modules=["q_proj"], trainable_token_indices=indices))


def test_all_rows_and_some_rows_exclude_each_other():
    both = PeftConfig(target_modules=["q_proj"], trainable_token_indices=[1], modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match="all of its rows train, or some"):
        apply_lora(resized("untied"), both)

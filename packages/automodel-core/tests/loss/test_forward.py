"""Losses on real architectures: the same loss and the same gradients as transformers' own."""

import copy

import pytest
import torch
from core_families import FAMILIES, build
from torch import nn

from automodel_core.loss import (
    ChunkedCrossEntropy,
    FusedLinearCrossEntropy,
    MaskedCrossEntropy,
    forward_loss,
    shift_labels,
)
from automodel_core.peft import PeftConfig, apply_lora


def loss_and_grads(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fused_loss_equals_transformers(family, tied, batch):
    model = build(family, tie_word_embeddings=tied)
    want, want_grads = loss_and_grads(model, model(**batch, use_cache=False).loss)
    shifted = shift_labels(batch)
    count = (shifted["shift_labels"] != -100).sum()
    got, grads = loss_and_grads(model, forward_loss(model, shifted, FusedLinearCrossEntropy(), count))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert set(grads) == set(want_grads)
    for name, grad in want_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("loss_fn", [MaskedCrossEntropy(), ChunkedCrossEntropy(5)], ids=["masked", "chunked"])
def test_losses_on_logits_equal_transformers(loss_fn, llama, batch):
    want, want_grads = loss_and_grads(llama, llama(**batch).loss)
    got, grads = loss_and_grads(llama, forward_loss(llama, shift_labels(batch), loss_fn, 14))
    torch.testing.assert_close(got, want)
    for name, grad in want_grads.items():
        torch.testing.assert_close(grads[name], grad)


def test_router_loss_counts_by_share_of_labels(batch):
    from transformers import MixtralConfig

    model = build("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    assert isinstance(model.config, MixtralConfig)
    whole = forward_loss(model, shift_labels(batch), FusedLinearCrossEntropy(), 14)
    torch.testing.assert_close(whole, model(**batch).loss, rtol=1e-5, atol=1e-6)
    half = forward_loss(model, shift_labels(batch), FusedLinearCrossEntropy(), 28)
    torch.testing.assert_close(half, whole / 2, rtol=1e-5, atol=1e-6)


def test_the_head_is_left_as_it_was(llama, batch):
    before = llama(**batch).logits
    forward_loss(llama, shift_labels(batch), FusedLinearCrossEntropy(), 14)
    assert "forward" not in llama.lm_head.__dict__
    assert torch.equal(llama(**batch).logits, before)


def test_full_logits_never_exist(llama, batch):
    seen = []
    handle = llama.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    forward_loss(llama, shift_labels(batch), FusedLinearCrossEntropy(), 14)
    handle.remove()
    assert [tuple(shape) for shape in seen] == [(1, 1, 3)]


def test_lora_on_the_head_trains(llama, batch):
    apply_lora(llama, PeftConfig(target_modules=["lm_head"], dim=4))
    nn.init.normal_(llama.lm_head.lora_B.weight)
    want, want_grads = loss_and_grads(llama, forward_loss(llama, shift_labels(batch), MaskedCrossEntropy(), 14))
    got, grads = loss_and_grads(llama, forward_loss(llama, shift_labels(batch), FusedLinearCrossEntropy(), 14))
    torch.testing.assert_close(got, want)
    assert set(grads) == {"lm_head.lora_A.weight", "lm_head.lora_B.weight"}
    for name, grad in want_grads.items():
        torch.testing.assert_close(grads[name], grad)


def test_a_model_that_does_something_unknown_to_its_logits_is_refused(llama, batch):
    class Odd(type(llama)):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * 2
            return outputs

    odd = copy.deepcopy(llama)
    odd.__class__ = Odd
    with pytest.raises(ValueError, match="does something else to its logits"):
        forward_loss(odd, shift_labels(batch), FusedLinearCrossEntropy(), 14)


def test_unshifted_batches_are_refused(llama, batch):
    with pytest.raises(ValueError, match="needs 'shift_labels'"):
        forward_loss(llama, batch, MaskedCrossEntropy(), 14)

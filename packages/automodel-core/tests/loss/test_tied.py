"""A tied weight's gradient is formed once, and is the gradient that autograd would have added up."""

import copy

import pytest
import torch
from core_families import build

from automodel_core.loss import FusedLinearCrossEntropy, MaskedCrossEntropy, forward_loss, shift_labels
from automodel_core.loss.tied import TiedGradient, joined_gradient

TIED = "model.embed_tokens.weight"


@pytest.fixture
def tied():
    return build("llama", tie_word_embeddings=True)


@pytest.fixture
def padded(batch):
    """With the padding id, whose row gets no gradient from look-ups, and the same token often."""
    ids = batch["input_ids"].clone()
    ids[0, :4], ids[0, 2], ids[1, 1] = 7, 0, 0
    return shift_labels({**batch, "input_ids": ids})


def gradients(model, batch, loss_fn, times=1):
    model.zero_grad()
    for _ in range(times):
        forward_loss(model, batch, loss_fn, 14).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("times", [1, 3])
def test_it_is_the_gradient_that_whole_logits_give(times, tied, padded):
    want = gradients(tied, padded, MaskedCrossEntropy(), times)
    got = gradients(tied, padded, FusedLinearCrossEntropy(chunk_len=4), times)
    assert set(got) == set(want)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert want[TIED].abs().max() > 1e-2
    assert "forward" not in tied.model.embed_tokens.__dict__


def test_the_weights_gradient_is_the_heads_own_buffer(tied, padded, monkeypatch):
    """No second ``[V, H]``: what the head's backward formed is what ends in ``.grad``."""
    formed = []
    plain = TiedGradient.take

    def take(self, gradient):
        formed.append(gradient.data_ptr())
        return plain(self, gradient)

    monkeypatch.setattr(TiedGradient, "take", take)
    forward_loss(tied, padded, FusedLinearCrossEntropy(), 14).backward()
    assert formed == [tied.lm_head.weight.grad.data_ptr()]


def test_where_the_embedding_is_not_looked_up_the_head_keeps_its_gradient(tied, padded):
    """A model that is fed embeddings has no look-up to hand the gradient to."""
    embeds = tied.get_input_embeddings()(padded["input_ids"]).detach()
    inputs = {**padded, "inputs_embeds": embeds}
    del inputs["input_ids"]
    want = gradients(tied, inputs, MaskedCrossEntropy())
    got = gradients(tied, inputs, FusedLinearCrossEntropy())
    torch.testing.assert_close(got[TIED], want[TIED], rtol=1e-4, atol=1e-6)
    assert want[TIED].abs().max() > 1e-2


@pytest.mark.parametrize("why", ["untied", "frozen", "half", "no grad", "autocast", "own forward"])
def test_anything_unusual_is_left_to_autograd(why, tied):
    model = build("llama") if why == "untied" else tied
    if why == "frozen":
        model.requires_grad_(False)
    if why == "half":
        model.to(torch.bfloat16)
    if why == "own forward":
        model.model.embed_tokens.forward = copy.copy(model.model.embed_tokens.forward)
    autocast = torch.autocast("cpu", enabled=why == "autocast")
    with torch.set_grad_enabled(why != "no grad"), autocast, joined_gradient(model) as gradient:
        assert gradient is None
    with joined_gradient(build("llama", tie_word_embeddings=True)) as gradient:
        assert gradient is not None


def test_a_second_backward_is_refused(tied, padded):
    loss = forward_loss(tied, padded, FusedLinearCrossEntropy(), 14)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time: its gradients are handed on"):
        loss.backward()

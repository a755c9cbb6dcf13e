import inspect

import pytest
import torch

from automodel_core.loss import FusedLinearCrossEntropy, MaskedCrossEntropy, forward_loss, shift_labels
from automodel_core.models import autocast_forward


@pytest.mark.parametrize("loss_fn", [MaskedCrossEntropy(), FusedLinearCrossEntropy()], ids=["masked", "fused"])
def test_compute_is_low_and_gradients_are_high(loss_fn, llama, batch):
    exact = forward_loss(llama, shift_labels(batch), loss_fn, 14)
    exact.backward()
    want = {name: p.grad.clone() for name, p in llama.named_parameters()}
    llama.zero_grad()
    signature = inspect.signature(llama.forward)
    autocast_forward(llama, "bfloat16")
    assert inspect.signature(llama.forward) == signature
    assert llama(batch["input_ids"]).logits.dtype == torch.bfloat16
    loss = forward_loss(llama, shift_labels(batch), loss_fn, 14)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    for name, parameter in llama.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - want[name]).norm() < 0.1 * want[name].norm(), name


def test_what_is_no_mixed_precision_is_refused(llama):
    with pytest.raises(ValueError, match="dtype='float32': choose bfloat16 or float16"):
        autocast_forward(llama, "float32")
    with pytest.raises(ValueError, match=r"on trainable weights in bfloat16.*Load the model with dtype: float32"):
        autocast_forward(llama.to(torch.bfloat16), "bfloat16")

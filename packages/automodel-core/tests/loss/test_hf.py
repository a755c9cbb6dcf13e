import pytest
import torch

from automodel_core.loss import ChunkedCrossEntropy, FusedLinearCrossEntropy, hf_loss


def test_trainer_gets_the_models_own_loss(llama, batch):
    outputs = llama(**batch)
    got = hf_loss(ChunkedCrossEntropy(5))(outputs, batch["labels"], num_items_in_batch=torch.tensor(14))
    torch.testing.assert_close(got, outputs.loss)
    torch.testing.assert_close(hf_loss(ChunkedCrossEntropy(5))(outputs, batch["labels"]), outputs.loss)


def test_a_loss_on_hidden_states_is_refused():
    with pytest.raises(TypeError, match="FusedLinearCrossEntropy, which works on hidden states"):
        hf_loss(FusedLinearCrossEntropy())

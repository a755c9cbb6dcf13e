"""Head and loss as one op on a plain Hugging Face model."""

import copy

import pytest
import torch

from automodel_kernels import patch_model_with_kernel_optimizations, unpatch

OPS = ("linear_cross_entropy", "rms_norm")


def batch():
    ids = torch.randint(3, 211, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": torch.tensor(17)}])
@pytest.mark.parametrize("tied", [False, True])
def test_same_loss_and_gradients_without_logits(build_model, tied, extra):
    model = build_model("Llama", tie_word_embeddings=tied)
    patched = copy.deepcopy(model)
    patch_model_with_kernel_optimizations(patched, ops=OPS)
    expected = model(**batch(), **extra).loss
    output = patched(**batch(), **extra)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-6)
    expected.backward()
    output.loss.backward()
    for (name, p), q in zip(model.named_parameters(), patched.parameters()):
        assert float((p.grad - q.grad).norm()) <= 1e-5 * float(p.grad.norm()) + 1e-9, name


def test_without_labels_there_are_logits(build_model):
    model = build_model("Llama")
    expected = model(input_ids=batch()["input_ids"]).logits
    patch_model_with_kernel_optimizations(model, ops=OPS)
    torch.testing.assert_close(model(input_ids=batch()["input_ids"]).logits, expected)
    model(**batch())
    torch.testing.assert_close(model(input_ids=batch()["input_ids"]).logits, expected)
    unpatch(model)
    assert model(**batch()).logits is not None


def test_an_error_inside_leaves_head_and_loss_as_they_were(build_model):
    model = build_model("Llama")
    patch_model_with_kernel_optimizations(model, ops=OPS)
    labels = batch()["labels"].clone()
    labels[0, 5] = 500
    with pytest.raises(ValueError, match=r"label 500 is out of range: labels must be in \[0, 211\)"):
        model(input_ids=batch()["input_ids"], labels=labels)
    assert "forward" not in vars(model.lm_head)
    assert "_loss_function" not in vars(model)


def test_capped_logits_are_refused_with_the_reason(build_model):
    model = build_model("Gemma2")
    report = patch_model_with_kernel_optimizations(model, ops=OPS)
    assert [skip.op for skip in report.skips] == ["linear_cross_entropy"]
    assert "Gemma2ForCausalLM" in report.skips[0].module_class

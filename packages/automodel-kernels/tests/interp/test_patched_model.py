"""Whole models with Triton in the interpreter: the same loss and gradients, and the report says that Triton ran."""

import copy

import pytest
import torch

from automodel_kernels import patch_model_with_kernel_optimizations
from automodel_kernels.backend import announced


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2"])
def test_kernels_on_equal_kernels_off(build_model, family):
    model = build_model(family)
    patched = copy.deepcopy(model)
    ops = ("glu", "rms_norm", "rope") if family == "Gemma2" else ("glu", "linear_cross_entropy", "rms_norm", "rope")
    report = patch_model_with_kernel_optimizations(patched, ops=ops, strict=True)
    assert {change.backend for change in report.changes} == {"triton"}
    assert report.fallback == ""
    ids = torch.randint(3, 211, (1, 9))
    labels = ids.clone()
    labels[:, :4] = -100
    losses = [m(input_ids=ids, labels=labels).loss for m in (model, patched)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(model.named_parameters(), patched.parameters()):
        assert float((p.grad - q.grad).norm()) <= 1e-5 * float(p.grad.norm()) + 1e-8, name
    assert {"rms_norm", "rope"} <= {op for op, backends in announced().items() if "triton" in backends}

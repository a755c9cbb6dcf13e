"""Patching a plain Hugging Face model: same numbers, instance only, reversible, nothing silent."""

import copy

import pytest
import torch

from automodel_kernels import KernelFallbackError, patch_model_with_kernel_optimizations, unpatch
from automodel_kernels.backend import use_backend

FAMILIES = {
    "Llama": {"glu": 2, "rms_norm": 5, "rope": 2},
    "Qwen2": {"glu": 2, "rms_norm": 5, "rope": 2},
    "Qwen3": {"glu": 2, "rms_norm": 9, "rope": 2},
    "Mistral": {"glu": 2, "rms_norm": 5, "rope": 2},
    "Phi3": {"glu": 2, "rms_norm": 5, "rope": 2},
    "Gemma": {"glu": 2, "rms_norm": 5, "rope": 2},
    "Gemma2": {"glu": 2, "rms_norm": 9, "rope": 2},
}


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 211, (2, 9), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "labels": labels}


def loss_and_grads(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, patched, inputs, tolerance=1e-5):
    loss, grads = loss_and_grads(model, inputs)
    other, other_grads = loss_and_grads(patched, inputs)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=1e-6)
    assert grads.keys() == other_grads.keys()
    for name, grad in grads.items():
        assert float((grad - other_grads[name]).norm()) <= tolerance * float(grad.norm()) + 1e-9, name


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_model_has_the_same_loss_and_gradients(build_model, family):
    model = build_model(family)
    patched = copy.deepcopy(model)
    report = patch_model_with_kernel_optimizations(patched, ops=("glu", "rms_norm", "rope"))
    assert report.counts() == FAMILIES[family]
    assert report.skips == []
    assert_same(model, patched, batch())


def test_packed_positions_reach_the_rotation(build_model):
    model = build_model("Llama")
    patched = copy.deepcopy(model)
    patch_model_with_kernel_optimizations(patched, ops=("rope",))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)
    inputs = {**batch(), "position_ids": positions}
    assert_same(model, patched, inputs)
    assert not torch.allclose(model(**batch()).logits, model(**inputs).logits)


def test_every_new_forward_is_really_called(build_model):
    model = build_model("Llama")
    report = patch_model_with_kernel_optimizations(model, ops=("glu", "rms_norm", "rope"))
    expected = model(**batch()).loss
    for change in report.changes:
        module = model.get_submodule(change.name)
        replaced = module.forward

        def broken(*args, _replaced=replaced, **kwargs):
            out = _replaced(*args, **kwargs)
            return (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5

        module.forward = broken
        assert not torch.allclose(model(**batch()).loss, expected), change
        module.forward = replaced


def test_only_the_instance_changes_and_unpatch_restores_it(build_model):
    first, second = build_model("Llama"), build_model("Llama")
    names = [name for name, _ in first.named_parameters()]
    patch_model_with_kernel_optimizations(first)
    assert not any("forward" in vars(m) for m in second.modules())
    assert [name for name, _ in first.named_parameters()] == names
    unpatch(first)
    assert not any("forward" in vars(m) for m in first.modules())
    assert torch.equal(first(**batch()).logits, second(**batch()).logits)
    with pytest.raises(ValueError, match="not patched"):
        unpatch(first)


def test_a_deep_copy_is_patched_on_its_own(build_model):
    model = build_model("Llama")
    patch_model_with_kernel_optimizations(model, ops="rms_norm")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight.mul_(3.0)
    assert not torch.allclose(twin(**batch()).logits, model(**batch()).logits)
    unpatch(twin)
    assert not any("forward" in vars(m) for m in twin.modules())
    assert "forward" in vars(model.model.norm)


def test_a_class_that_behaves_otherwise_is_left_alone(build_model, monkeypatch):
    model = build_model("Llama")
    cls = type(model.model.norm)
    monkeypatch.setattr(cls, "forward", lambda self, x: 2.0 * x)
    report = patch_model_with_kernel_optimizations(model, ops=("rms_norm", "glu"))
    assert report.counts() == {"glu": 2}
    assert {skip.op for skip in report.skips} == {"rms_norm"}
    assert "differs" in report.skips[0].reason
    assert "left alone" in str(report)


def test_unknown_activation_is_named(build_model):
    model = build_model("Llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()
    report = patch_model_with_kernel_optimizations(model, ops=("rms_norm", "glu"))
    assert {skip.reason for skip in report.skips} == {"its activation is Tanh (kernels know SiLU and GELU)"}


def test_meta_models_are_patched_before_their_weights_exist(tiny_config):
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(tiny_config("Llama"))
    report = patch_model_with_kernel_optimizations(model, ops=("glu", "rms_norm", "rope"))
    assert report.counts() == FAMILIES["Llama"]


def test_twice_unknown_and_nothing_are_errors(build_model):
    model = build_model("Llama")
    with pytest.raises(ValueError, match=r"ops=\['flash'\]: they must be among glu, linear_cross_entropy"):
        patch_model_with_kernel_optimizations(model, ops="flash")
    patch_model_with_kernel_optimizations(model)
    with pytest.raises(ValueError, match="patched already"):
        patch_model_with_kernel_optimizations(model)
    with pytest.raises(ValueError, match="no module of Linear can take"):
        patch_model_with_kernel_optimizations(torch.nn.Linear(2, 2))


@pytest.mark.skipif("TRITON_INTERPRET" in __import__("os").environ, reason="the kernels run in this lane")
def test_strict_names_the_reason_and_changes_nothing(build_model):
    model = build_model("Llama")
    with pytest.raises(KernelFallbackError, match="CPU tensors"):
        patch_model_with_kernel_optimizations(model, strict=True)
    assert not any("forward" in vars(m) for m in model.modules())
    patch_model_with_kernel_optimizations(model)
    with use_backend(strict=True), pytest.raises(KernelFallbackError, match=r"(rms_norm|rope|glu): the Triton kernel"):
        model(**batch())


def test_patched_model_compiles_into_one_graph(build_model):
    model = build_model("Llama")
    expected = model(**batch()).loss
    patch_model_with_kernel_optimizations(model, ops=("glu", "rms_norm", "rope"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch()).loss, expected, rtol=1e-5, atol=1e-6)

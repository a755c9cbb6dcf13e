"""Contract with the real wheels: each name and parameter that the adapters use exists. The engine does not run."""

import ast
import sys
import types

import pytest
import torch
from torch import nn

from automodel_kernels.te import attention, autocast, availability, cross_entropy, layers, surface

pytestmark = pytest.mark.more


def find(wheel, *names):
    return next(name for name in names if wheel.has(name))


def quantization(wheel):
    return find(wheel, "pytorch/quantization.py", "pytorch/fp8.py")


def test_layers_take_what_we_pass(wheel):
    assert set(surface.LINEAR) <= set(wheel.parameters("pytorch/module/linear.py", "Linear.__init__"))
    assert set(surface.NORM) <= set(wheel.parameters("pytorch/ops/basic/rmsnorm.py", "RMSNorm.__init__"))
    file = "pytorch/attention/dot_product_attention/dot_product_attention.py"
    assert set(surface.ATTENTION) <= set(wheel.parameters(file, "DotProductAttention.__init__"))
    assert set(surface.ATTENTION_CALL) <= set(wheel.parameters(file, "DotProductAttention.forward"))


def test_names_are_exported(wheel):
    names = surface.surface(wheel.version)
    used = {"Linear", "RMSNorm", "DotProductAttention", "parallel_cross_entropy", names.autocast}
    assert used <= wheel.exports()


def test_autocast_and_recipes(wheel):
    names = surface.surface(wheel.version)
    tree = wheel.tree(quantization(wheel))
    node = next(n for n in tree.body if getattr(n, "name", "") == names.autocast)
    dotted = f"{names.autocast}.__init__" if isinstance(node, ast.ClassDef) else names.autocast
    assert {"enabled", names.recipe, names.group} <= set(wheel.parameters(quantization(wheel), dotted))
    classes = {n.name for n in wheel.tree("common/recipe/__init__.py").body if isinstance(n, ast.ClassDef)}
    missing = {"nvfp4"} if wheel.version == "2.4.0" else set()
    assert {key for key, name in surface.RECIPES.items() if name not in classes} == missing


def test_cross_entropy_order(wheel):
    names = surface.surface(wheel.version)
    functions = [n.name for n in wheel.tree("pytorch/cross_entropy.py").body if isinstance(n, ast.FunctionDef)]
    assert names.cross_entropy_by_keyword == ("parallel_cross_entropy" in functions)
    dotted = "parallel_cross_entropy" if names.cross_entropy_by_keyword else "CrossEntropyFunction.forward"
    actual = wheel.parameters("pytorch/cross_entropy.py", dotted)
    actual = actual if names.cross_entropy_by_keyword else actual[1:]
    assert tuple(actual[: len(names.cross_entropy)]) == names.cross_entropy


@pytest.fixture
def fake_engine(wheel, monkeypatch):
    """``transformer_engine.pytorch`` with the wheel's signatures: an unknown keyword is a TypeError."""
    calls = []

    def strict(file, dotted):
        args = wheel.signature(file, dotted)
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
            if arg is not None:
                arg.annotation = None
        scope = {"torch": torch}
        exec(f"def bind({ast.unparse(args)}): return dict(locals())", scope)
        return scope["bind"]

    def layer(name, file, result):
        bind = strict(file, f"{name}.__init__")

        class Fake(nn.Module):
            def __init__(self, **kwargs):
                calls.append((name, bind(None, **kwargs)))
                super().__init__()
                result(self, **kwargs)

            def get_extra_state(self):
                return torch.zeros(1)

            def set_extra_state(self, state):
                return None

        Fake.__name__ = name
        return Fake

    def linear(self, in_features, out_features, bias, **_):
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def norm(self, normalized_shape, **_):
        self.weight = nn.Parameter(torch.empty(normalized_shape))

    names = surface.surface(wheel.version)
    engine = types.ModuleType("transformer_engine.pytorch")
    engine.Linear = layer("Linear", "pytorch/module/linear.py", linear)
    engine.RMSNorm = layer("RMSNorm", "pytorch/ops/basic/rmsnorm.py", norm)
    file = "pytorch/attention/dot_product_attention/dot_product_attention.py"
    engine.DotProductAttention = layer("DotProductAttention", file, lambda self, **_: None)
    call = strict(file, "DotProductAttention.forward")

    def forward(self, **kwargs):
        calls.append(("attention", call(self, **kwargs)))
        return kwargs["query_layer"]

    engine.DotProductAttention.forward = forward
    tree = wheel.tree(quantization(wheel))
    node = next(n for n in tree.body if getattr(n, "name", "") == names.autocast)
    is_class = isinstance(node, ast.ClassDef)
    bind = strict(quantization(wheel), f"{names.autocast}.__init__" if is_class else names.autocast)
    setattr(engine, names.autocast, lambda **kwargs: calls.append(("autocast", bind(*[None] * is_class, **kwargs))))
    if names.cross_entropy_by_keyword:
        engine.parallel_cross_entropy = strict("pytorch/cross_entropy.py", "parallel_cross_entropy")
    else:
        bind_ce = strict("pytorch/cross_entropy.py", "CrossEntropyFunction.forward")
        engine.parallel_cross_entropy = lambda *args: bind_ce(None, *args)
    recipes = types.ModuleType("transformer_engine.common.recipe")
    for recipe_node in wheel.tree("common/recipe/__init__.py").body:
        if isinstance(recipe_node, ast.ClassDef):
            setattr(recipes, recipe_node.name, type(recipe_node.name, (), {}))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", engine)
    monkeypatch.setitem(sys.modules, "transformer_engine.common.recipe", recipes)
    for module in (attention, autocast, cross_entropy, layers):
        monkeypatch.setattr(module, "require_te", lambda: engine)
    monkeypatch.setattr(surface, "te_version", lambda: wheel.version)
    monkeypatch.setattr(autocast, "te_version", lambda: wheel.version)
    return calls


def test_conversion_keeps_parameters_and_state(fake_engine, build_model):
    model = build_model("Llama")
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    report = layers.convert_to_te(model)
    assert len(report.converted) == 2 * 7 + 5
    assert ("lm_head", "filtered by lm_head") in report.skipped
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert sorted(model.state_dict()) == sorted(keys)
    assert model.load_state_dict(model.state_dict()).missing_keys == []
    assert type(model.model.norm).__name__ == "RMSNorm"


def test_gemma_norms_are_zero_centred(fake_engine, build_model):
    layers.convert_to_te(build_model("Gemma2"), linear=False)
    assert {args["zero_centered_gamma"] for name, args in fake_engine if name == "RMSNorm"} == {True}


def test_packed_attention_is_thd(fake_engine):
    owner = nn.Module()
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    lengths = torch.tensor([0, 2, 6], dtype=torch.int32)
    out, _ = attention.te_attention(
        owner, q, k, k, None, scaling=0.5, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths, max_length_q=4, max_length_k=4
    )
    assert torch.equal(out, q.transpose(1, 2))
    passed = dict(fake_engine)["attention"]
    assert passed["query_layer"].shape == (6, 4, 8)
    assert passed["attn_mask_type"] == "padding_causal"
    assert passed["qkv_format"] == "thd"
    assert passed["cu_seqlens_kv"] is lengths
    assert dict(fake_engine)["DotProductAttention"]["num_gqa_groups"] == 2
    with pytest.raises(ValueError, match="got a dense mask of shape"):
        attention.te_attention(owner, q, k, k, torch.ones(1, 1, 6, 6))


def test_autocast_and_loss_pass_by_the_release_s_names(fake_engine, wheel):
    autocast.te_autocast("current", enabled=True)
    names = surface.surface(wheel.version)
    assert type(dict(fake_engine)["autocast"][names.recipe]).__name__ == "Float8CurrentScaling"
    logits = torch.randn(1, 2, 8)
    bound = cross_entropy.te_parallel_cross_entropy(logits, torch.zeros(1, 2, dtype=torch.int64), ignore_index=-1)
    assert bound["ignore_idx"] == -1
    assert bound["reduce_loss"] is False
    assert bound[names.cross_entropy[0]] is not logits
    if wheel.version == "2.4.0":
        with pytest.raises(ValueError, match=r"Transformer Engine 2\.4\.0 has no NVFP4BlockScaling"):
            autocast.te_autocast("nvfp4")


def test_the_module_under_test_is_not_the_engine():
    assert availability.te_missing() != ""

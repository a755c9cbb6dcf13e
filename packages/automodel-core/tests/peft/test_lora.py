import copy

import pytest
import torch
from torch import nn

from automodel_core import NeMoAutoModelForCausalLM
from automodel_core.peft import (
    AdapterBank,
    LoRALayer,
    ModuleMatcher,
    PeftConfig,
    adapter_config,
    adapter_state_dict,
    apply_lora,
    combine_adapters,
    init_lora,
    load_adapter_state_dict,
    merge_lora,
    patch_linear_module,
    unload_lora,
    unmerge_lora,
)

QV = PeftConfig(target_modules=["*.q_proj", "*.v_proj"], dim=4)


def trained(model, config, seed=5):
    apply_lora(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + len(name)))
            parameter.data.add_(0.1 * noise)
    return model


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("config", [
    {}, {"target_modules": ["model.layers.0.*"]}, {"match_all_linear": True, "exclude_modules": ["*mlp*"]},
    {"target_modules": ["q_proj", "*.lm_head", "lm_head"][::2]}, {"exclude_modules": ["*vision*", "k_proj"]},
], ids=str)  # fmt: skip
def test_selection(config, llama):
    names = set(ModuleMatcher.from_config(PeftConfig(**config)).select(llama))
    linears = {n for n, m in llama.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    want = {
        "{}": linears,
        "{'target_modules': ['model.layers.0.*']}": {n for n in linears if ".0." in n},
        "{'match_all_linear': True, 'exclude_modules': ['*mlp*']}": {n for n in linears if "mlp" not in n},
        "{'target_modules': ['q_proj', 'lm_head']}": {n for n in linears if "q_proj" in n} | {"lm_head"},
        "{'exclude_modules': ['*vision*', 'k_proj']}": {n for n in linears if "k_proj" not in n},
    }[str(config)]
    assert names == want


def test_report_counts_and_only_the_adapter_trains(llama, caplog):
    report = apply_lora(llama, PeftConfig(target_modules=["q_proj"], exclude_modules=["*vision*"], dim=4))
    assert report.num_trainable == 2 * (4 * 32 + 32 * 4)
    assert report.unused_excludes == ("*vision*",)
    assert "q_proj x2" in str(report)
    assert "*vision*" in caplog.text
    assert {n.split(".")[-2] for n, p in llama.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_an_adapted_model_starts_as_its_base(llama, batch):
    want = logits(llama, batch)
    apply_lora(llama, PeftConfig(use_dora=True, dim=2))
    torch.testing.assert_close(logits(llama, batch), want)


def test_initial_values_depend_on_seed_and_name_alone(llama):
    other = copy.deepcopy(llama)
    apply_lora(llama, QV, seed=3)
    torch.manual_seed(99)
    apply_lora(other, PeftConfig(dim=4))
    init_lora(other, 3)
    same = lambda m: m.model.layers[1].self_attn.v_proj.lora_A.weight  # noqa: E731
    assert torch.equal(same(llama), same(other))
    assert not torch.equal(same(llama), llama.model.layers[0].self_attn.v_proj.lora_A.weight)
    bound = (6 / (32 + 4)) ** 0.5
    assert -bound <= same(llama).min() < -bound / 2
    init_lora(other, 4)
    assert not torch.equal(same(llama), same(other))


@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_drops_where_it_says(position):
    layer = patch_linear_module(nn.Linear(64, 64), PeftConfig(dim=64, dropout=0.5, dropout_position=position))
    with torch.no_grad():
        layer.lora_A.weight.copy_(torch.eye(64))
        layer.lora_B.weight.copy_(torch.eye(64))
    torch.manual_seed(0)
    out = layer.adapter_output(torch.ones(1, 64)) / layer.scaling
    assert set(out.unique().tolist()) == {0.0, 2.0}
    with torch.no_grad():
        layer.lora_B.weight.fill_(1.0)
    torch.manual_seed(0)
    out = layer.adapter_output(torch.ones(1, 64))
    assert (len(out.unique()) == 1) == (position == "pre")
    layer.eval()
    assert torch.equal(layer.adapter_output(torch.ones(1, 64)), torch.full((1, 64), 64 * layer.scaling))


@pytest.mark.parametrize("keys", [{}, {"use_dora": True}, {"use_rslora": True}, {"dropout": 0.3}], ids=str)
def test_merged_equals_unmerged_and_comes_back(keys, llama, batch):
    base = logits(llama, batch)
    trained(llama, PeftConfig(dim=4, **keys))
    want = logits(llama, batch)
    report = merge_lora(llama)
    assert report.largest_change > 1e-3
    torch.testing.assert_close(logits(llama, batch), want, rtol=1e-4, atol=1e-4)
    assert (want - base).abs().max() > 1e-2
    unmerge_lora(llama)
    torch.testing.assert_close(logits(llama, batch), want, rtol=1e-4, atol=1e-4)
    merge_lora(llama, unload=True)
    assert not any(isinstance(m, LoRALayer) or "lora" in n for n, m in llama.named_modules())
    torch.testing.assert_close(logits(llama, batch), want, rtol=1e-4, atol=1e-4)


def test_unload_gives_the_base_back(llama, batch):
    want, keys = logits(llama, batch), set(llama.state_dict())
    trained(llama, QV)
    unload_lora(llama)
    assert torch.equal(logits(llama, batch), want)
    assert set(llama.state_dict()) == keys
    assert type(llama.model.layers[0].self_attn.q_proj) is nn.Linear


def test_tensors_round_trip(llama, batch):
    other = copy.deepcopy(llama)
    trained(llama, QV)
    apply_lora(other, QV)
    load_adapter_state_dict(other, adapter_state_dict(llama))
    assert torch.equal(logits(llama, batch), logits(other, batch))


def test_lora_dtype_keeps_the_base_in_its_own(llama):
    llama.to(torch.bfloat16)
    apply_lora(llama, PeftConfig(target_modules=["q_proj"], lora_dtype="float32"))
    layer = llama.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.lora_A.weight.dtype) == (torch.bfloat16, torch.float32)
    assert layer(torch.randn(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_config_round_trip_and_scaling():
    config = PeftConfig(target_modules="q_proj", dim=16, alpha=8, lora_dtype="bfloat16", use_rslora=True)
    assert PeftConfig.from_dict(config.to_dict()) == config
    assert config.scaling == 2.0
    assert PeftConfig(dim=16, alpha=8).scaling == 0.5


def test_bank_keeps_switches_and_remembers_training(llama, batch):
    base = logits(llama, batch)
    one, two = copy.deepcopy(llama), copy.deepcopy(llama)
    bigger = PeftConfig(target_modules=["up_proj"], dim=6)
    trained(one, QV)
    trained(two, bigger)
    bank = AdapterBank(llama)
    bank.add("one", adapter_state_dict(one), adapter_config(one, QV))
    bank.add("two", adapter_state_dict(two), adapter_config(two, bigger))
    for name, model in (("one", one), ("two", two), ("one", one)):
        bank.switch(name)
        torch.testing.assert_close(logits(llama, batch), logits(model, batch))
    with torch.no_grad():
        llama.model.layers[0].self_attn.q_proj.lora_B.weight.add_(1.0)
    changed = logits(llama, batch)
    bank.switch(None)
    assert torch.equal(logits(llama, batch), base)
    bank.switch("one")
    assert torch.equal(logits(llama, batch), changed)
    with pytest.raises(ValueError, match="no adapter 'three': there are one, two"):
        bank.switch("three")


def test_combined_adapters_add_up(llama):
    one, two, both = (copy.deepcopy(llama) for _ in range(3))
    other = PeftConfig(target_modules=["q_proj", "v_proj"], dim=2, alpha=6, use_rslora=True)
    trained(one, QV)
    trained(two, other, seed=50)
    parts = [(adapter_state_dict(one), adapter_config(one, QV)), (adapter_state_dict(two), adapter_config(two, other))]
    tensors, config = combine_adapters(parts, [0.25, -2.0])
    bank = AdapterBank(both)
    bank.add("both", tensors, config)
    bank.switch("both")
    name = "model.layers.1.self_attn.v_proj"
    want = 0.25 * one.get_submodule(name).delta_weight() - 2.0 * two.get_submodule(name).delta_weight()
    torch.testing.assert_close(both.get_submodule(name).delta_weight(), want)
    assert want.abs().max() > 1e-3


def test_sequence_classifier_trains_its_new_head():
    from core_families import config as family_config

    from automodel_core import NeMoAutoModelForSequenceClassification

    config = family_config("llama", num_labels=3)
    model = NeMoAutoModelForSequenceClassification.from_config(config)
    report = apply_lora(model, QV)
    assert report.modules_to_save == ("score",)
    assert adapter_config(model, QV)["task_type"] == "SEQ_CLS"
    assert "base_model.model.score.weight" in adapter_state_dict(model)


@pytest.mark.parametrize("keys", [{}, {"modules_to_save": ["embed_tokens"]}])
def test_a_classifier_adapts_every_linear_layer_but_its_head_as_peft_does(keys):
    import peft
    from core_families import config as family_config

    from automodel_core import NeMoAutoModelForSequenceClassification

    build = NeMoAutoModelForSequenceClassification.from_config
    config = family_config("llama", num_labels=3)
    ours = apply_lora(build(config), PeftConfig(dim=4, **keys))
    theirs = peft.get_peft_model(
        build(config), peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", **keys)
    )
    assert set(ours.modules) == set(theirs.base_model.targeted_module_names)
    assert "score" in ours.modules_to_save
    assert len(ours.modules_to_save) == 1 + len(keys)


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"dim": 0}, "dim=0 for LoRA: the rank must be >= 1"),
        ({"dropout": 1.5}, r"dropout=1.5 for LoRA: it must be in \[0, 1\)"),
        ({"alpha": 0}, "alpha=0"),
        ({"lora_A_init": "orthogonal"}, "lora_A_init='orthogonal'"),
        ({"dropout_position": "mid"}, "dropout_position='mid'"),
        ({"lora_dtype": "int8"}, "lora_dtype='int8'"),
        ({"use_dora": True, "dropout": 0.1}, "Set dropout_position: pre"),
    ],
)
def test_impossible_configs_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        PeftConfig(**keys)


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"target_modules": ["*.q_prj"]}, "candidates are q_proj x2.*Did you mean 'q_proj'"),
        ({"target_modules": ["*.q_proj", "*.nothing"]}, r"'\*.nothing' matches no linear layer"),
        ({"target_modules": ["*norm*"]}, "matches LlamaRMSNorm, which is no linear layer"),
        ({"exclude_modules": ["*"]}, "nothing left to adapt"),
        ({"modules_to_save": ["*head2"]}, "modules_to_save pattern"),
        ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "choose one"),
        ({"target_parameters": ["*experts*"]}, "matches no fused weight"),
        ({"use_triton": True}, "pip install automodel-kernels"),
    ],
)
def test_settings_that_act_on_nothing_are_refused(llama, keys, said):
    with pytest.raises(ValueError, match=said):
        apply_lora(llama, PeftConfig(**keys))


def test_an_adapter_of_another_model_is_refused(llama):
    from core_families import config as family_config

    other = NeMoAutoModelForCausalLM.from_config(family_config("llama", num_hidden_layers=3, hidden_size=64))
    trained(other, QV)
    apply_lora(llama, QV)
    with pytest.raises(
        ValueError, match=r"does not fit the model \(4 unexpected: .*; 4 another shape: .*64\) for \(4, 32"
    ):
        load_adapter_state_dict(llama, adapter_state_dict(other))


def test_misuse_is_refused(llama):
    for misuse in (merge_lora, unmerge_lora, unload_lora, adapter_state_dict):
        with pytest.raises(ValueError, match=r"without|no LoRA layer"):
            misuse(llama)
    apply_lora(llama, QV)
    with pytest.raises(ValueError, match="has LoRA layers already"):
        apply_lora(llama, QV)
    with pytest.raises(ValueError, match="merging changed no weight"):
        merge_lora(llama)


def test_tied_weights_are_not_saved_by_half_nor_merged():
    from core_families import build

    tied = build("llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"whose weight is tied to 'model\.embed_tokens'"):
        apply_lora(tied, PeftConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    tied = build("llama", tie_word_embeddings=True)
    trained(tied, PeftConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"is tied to model\.embed_tokens\.weight"):
        merge_lora(tied)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_merged_experts_equal_unmerged_and_come_back(family, batch):
    from core_families import build

    model = build(family)
    keys, base = set(model.state_dict()), logits(model, batch)
    targets = {"target_modules": ["q_proj"], "target_parameters": ["*.experts.gate_up_proj", "*.experts.down_proj"]}
    trained(model, PeftConfig(dim=2, **targets))
    want = logits(model, batch)
    report = merge_lora(model)
    assert len(report.modules) == 2 + 4
    torch.testing.assert_close(logits(model, batch), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="merged already"):
        merge_lora(model)
    unmerge_lora(model)
    torch.testing.assert_close(logits(model, batch), want, rtol=1e-4, atol=1e-4)
    other = copy.deepcopy(model)
    merge_lora(model, unload=True)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(logits(model, batch), want, rtol=1e-4, atol=1e-4)
    unload_lora(other)
    torch.testing.assert_close(logits(other, batch), base, rtol=1e-4, atol=1e-4)
    assert (want - base).abs().max() > 1e-3


def test_experts_alone_are_merged(batch):
    from core_families import build

    model = build("mixtral")
    trained(model, PeftConfig(dim=2, target_parameters=["*.experts.down_proj"]))
    want = logits(model, batch)
    assert merge_lora(model, unload=True).largest_change > 1e-4
    torch.testing.assert_close(logits(model, batch), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="without LoRA layers"):
        unload_lora(model)


@pytest.mark.parametrize("merged", [False, True])
def test_unloading_pissa_leaves_no_hole_in_the_base(merged, llama, batch):
    base = logits(llama, batch)
    trained(llama, PeftConfig(target_modules=["q_proj", "down_proj"], dim=4, lora_A_init="pissa"))
    want = logits(llama, batch) if merged else base
    merge_lora(llama) if merged else None
    unload_lora(llama)
    torch.testing.assert_close(logits(llama, batch), want, rtol=1e-4, atol=1e-4)
    assert not any("pissa" in name for name, _ in llama.named_buffers())

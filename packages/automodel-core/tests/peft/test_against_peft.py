"""Our LoRA and the peft library's: same numbers, same files."""

import copy
import json

import peft
import pytest
import torch
from core_families import build
from safetensors.torch import load_file, save_file

from automodel_core.loss import MaskedCrossEntropy, forward_loss, shift_labels
from automodel_core.peft import (
    PeftConfig,
    adapter_config,
    adapter_state_dict,
    apply_lora,
    config_from_adapter,
    load_adapter_state_dict,
)

VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "all-linear": {"target_modules": []},
    "one-layer": {"target_modules": ["model.layers.1.self_attn.q_proj", "*.0.mlp.up_proj"]},
    "saved-head": {"modules_to_save": ["lm_head"]},
}


def save(directory, model, config):
    save_file(adapter_state_dict(model), directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config(model, config)))


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_same_logits_gradients_and_loss_curve(variant, llama, batch, tmp_path):
    base = copy.deepcopy(llama)
    config = PeftConfig(
        **{"target_modules": ["q_proj", "v_proj", "down_proj"], "dim": 4, "alpha": 12} | VARIANTS[variant]
    )
    before = set(dict(llama.named_parameters()))
    report = apply_lora(llama, config)
    randomise(llama)
    assert before <= set(dict(llama.named_parameters()))
    save(tmp_path, llama, config)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    adapted = {
        n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.Linear)
    }
    assert adapted == set(report.modules)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(llama(**inputs).logits, theirs(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert curve(llama, batch) == pytest.approx(curve(theirs, batch), rel=1e-5)
    trained, wanted = adapter_state_dict(llama), peft.get_peft_model_state_dict(theirs)
    assert set(trained) == set(wanted)
    for key, tensor in wanted.items():
        torch.testing.assert_close(trained[key], tensor, rtol=1e-3, atol=1e-5)


def curve(model, batch, steps=20, lr=0.01):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = forward_loss(model, shift_labels(batch), MaskedCrossEntropy(), 14)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    return losses


@pytest.mark.parametrize("keys", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_an_adapter_of_peft_goes_on_training_here(keys, llama, batch, tmp_path):
    torch.manual_seed(3)
    made = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **keys)
    theirs = peft.get_peft_model(copy.deepcopy(llama), made)
    theirs.save_pretrained(tmp_path)
    config = config_from_adapter(json.loads((tmp_path / "adapter_config.json").read_text()))
    apply_lora(llama, config)
    load_adapter_state_dict(llama, load_file(tmp_path / "adapter_model.safetensors"))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(llama(**inputs).logits, theirs(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert curve(llama, batch, 3) == pytest.approx(curve(theirs, batch, 3), rel=1e-5)


def test_pissa_starts_as_the_base_and_is_exported_for_it(llama, batch, tmp_path):
    base = copy.deepcopy(llama)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    config = PeftConfig(target_modules=["q_proj", "down_proj"], dim=4, lora_A_init="pissa")
    apply_lora(llama, config)
    torch.testing.assert_close(llama(**inputs).logits, base(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert (
        llama.model.layers[0].self_attn.q_proj.weight - base.model.layers[0].self_attn.q_proj.weight
    ).abs().max() > 1e-3
    curve(llama, batch, 3)
    want = llama(**inputs).logits
    assert (want - base(**inputs).logits).abs().max() > 1e-2
    save(tmp_path, llama, config)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(theirs(**inputs).logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_fused_experts_are_read_by_peft(family, batch, tmp_path):
    model = build(family)
    base = copy.deepcopy(model)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    config = PeftConfig(target_parameters=["*.experts.gate_up_proj", "*.experts.down_proj"], dim=2, alpha=4)
    names = set(dict(model.named_parameters()))
    report = apply_lora(model, config)
    assert names <= set(dict(model.named_parameters()))
    assert len(report.modules) == 4
    torch.testing.assert_close(model(**inputs).logits, base(**inputs).logits)
    randomise(model)
    want = model(**inputs).logits
    assert (want - base(**inputs).logits).abs().max() > 1e-3
    save(tmp_path, model, config)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    torch.testing.assert_close(theirs(**inputs).logits, want, rtol=1e-4, atol=1e-5)
    assert curve(model, batch, 3) == pytest.approx(curve(theirs, batch, 3), rel=1e-4)


@pytest.mark.parametrize(
    "made, lr",
    [
        (peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False), 2.0),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), 20.0),
        (peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"]), 2.0),
    ],
    ids=["loha", "ia3", "oft"],
)
def test_other_methods_are_handed_to_peft(made, lr, llama, batch, tmp_path):
    base = copy.deepcopy(llama)
    report = apply_lora(llama, made)
    assert report.modules
    assert report.num_trainable == sum(p.numel() for p in llama.parameters() if p.requires_grad) > 0
    curve(llama, batch, 4, lr=lr)
    save(tmp_path, llama, made)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(theirs(**inputs).logits, llama.eval()(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_methods_that_adapt_no_module_in_place_are_refused(llama):
    with pytest.raises(ValueError, match="learns a prompt"):
        apply_lora(llama, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="VERA"):
        apply_lora(llama, peft.VeraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="apply_lora got a dict"):
        apply_lora(llama, {"dim": 8})

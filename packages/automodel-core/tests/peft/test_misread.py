"""What peft would load onto other parameters is refused before it is trained."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from automodel_core.peft import PeftConfig, apply_lora

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
}


@pytest.fixture
def mixture():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("dots1", **SIZES))


@pytest.mark.parametrize("targets", [["*.gate_proj", "*.up_proj", "*.down_proj"], ["*.q_proj", "*.down_proj"]])
def test_names_that_peft_redirects_are_refused_and_nothing_changes(mixture, targets):
    before = [name for name, p in mixture.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match=r"fused experts.*exclude_modules.*target_parameters"):
        apply_lora(mixture, PeftConfig(target_modules=targets, dim=2, alpha=4))
    assert [name for name, p in mixture.named_parameters() if p.requires_grad] == before


def test_attention_of_the_same_model_is_fine(mixture):
    report = apply_lora(mixture, PeftConfig(target_modules=["*.q_proj", "*.v_proj"], dim=2, alpha=4))
    assert len(report.modules) == 4

"""MFU: the formula counts what torch counts, and the batch's real sequence lengths."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_recipes.flops import device_peak, sequence_lengths, step_flops

CONFIG = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [False, True])
def test_full_training_costs_what_torch_counts(tied):
    config = LlamaConfig(**CONFIG, tie_word_embeddings=tied, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    ids = torch.ones(3, 40, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    ours = step_flops(model).of(num_tokens=3 * 40, squared_lengths=3 * 40**2)
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.005)


def test_frozen_weights_cost_a_third_less():
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    trained = step_flops(model).per_token
    model.requires_grad_(False)
    assert step_flops(model).per_token == pytest.approx(trained * 4 / 6)


def test_of_experts_the_active_share_counts():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"num_local_experts": 4, **CONFIG}
    one, two = (step_flops(MixtralForCausalLM(MixtralConfig(num_experts_per_tok=n, **sizes))).per_token for n in (1, 2))
    expert = 3 * CONFIG["hidden_size"] * CONFIG["intermediate_size"]
    assert two - one == pytest.approx(6 * CONFIG["num_hidden_layers"] * expert)


def test_lengths_are_those_of_documents():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert sequence_lengths({"input_ids": mask, "attention_mask": mask}) == [3, 4]
    packed = {"input_ids": torch.ones(1, 10), "cu_seq_lens_q": torch.tensor([0, 4, 10], dtype=torch.int32)}
    assert sequence_lengths(packed) == [4, 6]
    assert sequence_lengths({"input_ids": torch.ones(2, 5)}) == [5, 5]


def test_the_peak_of_a_cpu_is_measured_and_a_given_one_is_taken():
    measured = device_peak(torch.device("cpu"), given=None)
    assert 1e-4 < measured.tflops < 100
    assert "measured" in measured.source
    assert device_peak(torch.device("cpu"), given=2.5).tflops == 2.5
    assert device_peak(torch.device("mps"), given=None) is None


def test_the_peak_of_a_gpu_is_its_data_sheets(monkeypatch):
    names = {"NVIDIA H200": 989, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA Unheard Of": None}
    for name, tflops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        peak = device_peak(torch.device("cuda", 0), given=None)
        assert (peak and peak.tflops) == tflops, name

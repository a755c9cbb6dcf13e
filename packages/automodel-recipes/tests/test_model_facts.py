"""Dimensions of public models: each entry builds a model of exactly the published number of parameters."""

import pytest

from automodel_recipes.model_facts import ROOT, find_facts, known_models

# Parameters of the published checkpoints (tied weights once).
PUBLISHED = {
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolVLM-256M-Instruct": 256_484_928,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 507_482_304,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
}
QUICK = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B", "google/gemma-3-4b-it", "llava-hf/llava-1.5-7b-hf")


def count_parameters(name):
    import torch
    import transformers

    facts = dict(find_facts(name))
    config = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    with torch.device("meta"):
        model = getattr(transformers, facts["architectures"][0])(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_common_models_have_the_published_size(name):
    assert count_parameters(name) == PUBLISHED[name]


@pytest.mark.more
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in QUICK])
def test_models_have_the_published_size(name):
    assert count_parameters(name) == PUBLISHED[name]


def test_endings_share_the_base_models_dimensions():
    assert find_facts("qwen/qwen2.5-7b-INSTRUCT") == find_facts("Qwen/Qwen2.5-7B")
    assert find_facts("no/such-model") is None


def test_every_entry_is_complete():
    assert len(known_models()) >= 50
    assert len(list(ROOT.glob("*.json"))) >= 15
    for name in known_models():
        facts = find_facts(name)
        text = facts.get("text_config", facts)
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
            assert isinstance(text[field], int), (name, field)
        assert text["num_attention_heads"] % text["num_key_value_heads"] == 0

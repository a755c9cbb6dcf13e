"""Core's model without storage, cut by FSDP2, and ckpt's loading into the parts: no rank ever holds it whole."""

import pytest
import torch
import transformers

from automodel_ckpt import load_base_weights
from automodel_ckpt.faults import ranks
from automodel_core import NeMoAutoModelForCausalLM, NeMoAutoModelForImageTextToText
from automodel_core.models.meta import materialize
from automodel_core.peft import PeftConfig, apply_lora

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama-tied": ("LlamaForCausalLM", {**TEXT, "tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", {**TEXT, "num_local_experts": 4}),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**TEXT, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"},
        },
    ),
}


def _layers(model):
    return [module for name, module in model.named_modules() if name.rpartition(".")[2].isdigit()]


@pytest.mark.parametrize("name", MODELS)
def test_meta_model_is_cut_then_loaded(tmp_path, name):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    source = getattr(transformers, kind)
    source(source.config_class(**config)).save_pretrained(tmp_path)
    loader = NeMoAutoModelForImageTextToText if "Conditional" in kind else NeMoAutoModelForCausalLM

    def work(rank):
        from torch.distributed.fsdp import fully_shard

        expected = loader.from_pretrained(tmp_path)
        model = loader.from_pretrained(tmp_path, materialize=False)
        apply_lora(model, PeftConfig(target_modules=["*.q_proj"], dim=2))
        for layer in _layers(model):
            fully_shard(layer)
        fully_shard(model)
        materialize(model, device="cpu")
        report = load_base_weights(model, model.weight_source)
        assert report.missing == report.unexpected == ()
        loaded = {n: t.full_tensor() for n, t in model.state_dict().items() if "lora_" not in n}
        assert loaded.keys() == expected.state_dict().keys()
        assert all(torch.equal(loaded[n], t) for n, t in expected.state_dict().items())
        size = sum(p.numel() * p.element_size() for p in expected.parameters())
        assert report.bytes_read < 0.75 * size
        if name != "llava":  # buffers that no file holds are right, too
            with torch.no_grad():
                for module in model.modules():
                    if hasattr(module, "lora_B"):
                        module.lora_B.weight.zero_()
                        module.lora_A.weight.zero_()
                ids = torch.arange(3, 12)[None]
                torch.testing.assert_close(model.eval()(ids).logits, expected.eval()(ids).logits, rtol=1e-5, atol=1e-5)

    ranks.run(2, work, timeout_s=120)

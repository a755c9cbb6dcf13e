"""A small Llama in dimensions only, and a configuration that names no file that must be there."""

from typing import Any

import pytest

from automodel_core.config import ConfigNode, config_from_dict

DIMENSIONS = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dtype": "float32",
}


@pytest.fixture
def plan_config() -> Any:
    """``plan_config(distributed={...})``: the configuration with some sections exchanged."""

    def make(**sections: Any) -> ConfigNode:
        values = {
            "recipe": "LLMFinetuneRecipe",
            "device": "cpu",
            "model": {"_target_": "automodel_core.NeMoAutoModelForCausalLM.from_config", "config": DIMENSIONS},
            "dataset": {"_target_": "chat", "path_or_dataset_id": "somewhere/else", "seq_length": 64},
            "step_scheduler": {"global_batch_size": 64, "local_batch_size": 2},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        }
        return config_from_dict({**values, **sections})

    return make

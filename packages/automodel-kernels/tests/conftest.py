"""Tiny models, and the split into lanes: tests under ``interp/`` need Triton's interpreter from the first import."""

import os

import pytest
import torch

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRET else ["interp/*"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config():
    """Build tiny configs by family name."""
    import transformers

    sizes = {
        "vocab_size": 211,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }

    def make(family: str):
        return getattr(transformers, f"{family}Config")(**sizes)

    return make


@pytest.fixture(scope="session")
def build_model(tiny_config):
    """Build a tiny random causal language model of a family; same family, same weights."""
    import transformers

    def make(family: str, **changes):
        config = tiny_config(family)
        for name, value in changes.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForCausalLM")(config).float()

    return make

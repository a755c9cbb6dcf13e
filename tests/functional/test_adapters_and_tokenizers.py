"""An adapter of an earlier run is trained on; a tokenizer of another model is refused before a row is read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.loggers.jsonl import read_jsonl
from automodel_recipes.run import recipe_class


def start(config, out):
    config = {**config, "checkpoint": {"enabled": False, "checkpoint_dir": str(out)}}
    recipe = recipe_class(config["recipe"])(config_from_dict(config), TrainOptions(quiet=True))
    try:
        recipe.setup()
    except BaseException:
        recipe.close()
        raise
    return recipe


def train(config, out):
    recipe = start(config, out)
    try:
        recipe.train()
    finally:
        recipe.close()
    return read_jsonl(recipe.run_dir.metrics)


@pytest.fixture
def adapter(tiny_config, tmp_path):
    """A trained adapter, the configuration that made it, and its last validation loss."""
    tiny_config["peft"] = {"_target_": "lora", "target_modules": ["q_proj", "down_proj"], "dim": 3, "use_rslora": True}
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    rows = train(tiny_config, tmp_path / "first")
    return tiny_config, tmp_path / "first" / "final", [row["loss"] for row in rows if row["kind"] == "val"]


def test_a_saved_adapter_is_trained_on(adapter, tmp_path):
    config, saved, before = adapter
    config["peft"] = {"_target_": "adapter", "path": str(saved), "dropout": 0.0}
    rows = train(config, tmp_path / "second")
    after = [row["loss"] for row in rows if row["kind"] == "val"]
    assert after[0] == pytest.approx(before[-1], rel=1e-6)
    assert after[-1] < after[0] < before[0]
    old, new = (json.loads((path / "adapter_config.json").read_text()) for path in (saved, tmp_path / "second/final"))
    for key in ("r", "lora_alpha", "use_rslora", "target_modules"):
        assert new[key] == old[key], key
    old, new = (load_file(path / "adapter_model.safetensors") for path in (saved, tmp_path / "second/final"))
    assert set(old) == set(new)
    assert not any(torch.equal(old[name], new[name]) for name in old)


def test_an_adapter_that_does_not_fit_is_refused_by_name(adapter, tmp_path):
    config, saved, _ = adapter
    config["peft"] = {"_target_": "adapter", "path": str(saved)}
    file = saved / "adapter_model.safetensors"
    tensors = load_file(file)
    wide = {name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file(wide, file)
    with pytest.raises(ValueError, match=r"the adapter does not fit the model \(4 another shape: .*lora_A.*\(3, 64\)"):
        start(config, tmp_path / "wide")
    save_file({name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"missing: .*layers\.1\..*unexpected: .*layers\.9\."):
        start(config, tmp_path / "other")
    config["peft"]["path"] = str(tmp_path / "nowhere")
    with pytest.raises(Exception, match=r"nowhere.*does not exist"):
        start(config, tmp_path / "absent")


@pytest.fixture
def with_tokenizer(tiny_config, tiny_model, tmp_path):
    """The tiny model with a tokenizer that has more tokens."""

    def make(num_added):
        from transformers import AutoTokenizer

        model = tmp_path / f"model-{num_added}"
        shutil.copytree(tiny_model, model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens([f"<new-{i}>" for i in range(num_added)])
        tokenizer.save_pretrained(model)
        tiny_config["model"]["pretrained_model_name_or_path"] = str(model)
        return tiny_config

    return make


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(with_tokenizer, tmp_path):
    with pytest.raises(UnusableInputError, match=r"ids up to 98 for an embedding of 96 rows"):
        start(with_tokenizer(3), tmp_path / "larger")


def test_a_tokenizer_of_another_model_is_refused(tiny_config, tmp_path):
    tiny_config["tokenizer"] = {"pretrained_model_name_or_path": tiny_config["model"]["pretrained_model_name_or_path"]}
    tiny_config["model"] = {
        "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_config",
        "config": {"model_type": "llama", "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64,
                   "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
    }  # fmt: skip
    with pytest.raises(UnusableInputError, match="4000 rows would never be used"):
        start(tiny_config, tmp_path / "smaller")

"""The read-back gate passes what is right and catches what is not; stock DCP reads what `save_dcp` writes."""

import pytest
import torch

from automodel_ckpt import (
    ModelState,
    VerificationFailed,
    export_hf,
    grow_for_adapter,
    read_back,
    save_adapter,
    save_dcp,
)
from automodel_ckpt.adapter import read_tensors
from automodel_ckpt.local_disk import LocalDisk
from automodel_ckpt.writer import write_tensors

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def _llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    return transformers.LlamaForCausalLM(config).eval()


def _rewrite(path, change):
    tensors = read_tensors(path)
    change(tensors)
    path.unlink()
    write_tensors(LocalDisk(path.parent), path.name, tensors)


@pytest.fixture
def exported(tmp_path):
    model = _llama()
    inputs = {"input_ids": torch.arange(9)[None]}
    return export_hf(model, tmp_path / "out"), inputs, model(**inputs).logits.detach()


def test_good_export_passes(exported):
    directory, inputs, logits = exported
    report = read_back(directory, inputs=inputs, logits=logits)
    assert (report.kind, report.max_difference) == ("model", 0.0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.norm.weight"), "missing .*norm"),
        (lambda t: t.update(extra=torch.ones(2)), "unexpected .*extra"),
        (lambda t: t["lm_head.weight"].fill_(float("nan")), "not finite lm_head"),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(3), "logits differ by"),
    ],
)
def test_bad_export_is_caught(exported, change, message):
    directory, inputs, logits = exported
    _rewrite(directory / "model.safetensors", change)
    with pytest.raises(VerificationFailed, match=message):
        read_back(directory, inputs=inputs, logits=logits)


@pytest.mark.parametrize(
    "change, message",
    [
        (None, None),
        (lambda t: [v.zero_() for n, v in t.items() if "lora_B" in n], "all zero"),
        (lambda t: [t.update({n.replace("base_model.", ""): t.pop(n)}) for n in list(t)], "names differ"),
        (lambda t: [v.mul_(2) for v in t.values()], "logits differ"),
    ],
)
def test_adapter(tmp_path, change, message):
    model = peft.get_peft_model(_llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=5)
    inputs = {"input_ids": torch.arange(9)[None]}
    logits = model.eval()(**inputs).logits
    config = {**model.peft_config["default"].to_dict(), "target_modules": ["q_proj"]}
    config = {key: value for key, value in config.items() if isinstance(value, (str, int, float, list, type(None)))}
    directory = save_adapter(tmp_path / "a", peft.get_peft_model_state_dict(model), config)
    if change is None:
        assert read_back(directory, base=_llama(), inputs=inputs, logits=logits).num_tensors == 4
        return
    _rewrite(directory / "adapter_model.safetensors", change)
    with pytest.raises(VerificationFailed, match=message):
        read_back(directory, base=_llama(), inputs=inputs, logits=logits)


def test_stock_dcp_reads_save_dcp(tmp_path, build):
    import torch.distributed.checkpoint as dcp

    one, other = build(1), build(2)
    save_dcp(tmp_path / "dcp", one.model, one.optim)
    dcp.load({"model": ModelState(other.model)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert torch.equal(other.model["head"].weight, one.model["embed"].weight)


@pytest.mark.parametrize("rows", ["some", "whole"])
def test_an_adapter_with_added_tokens_is_read_on_a_base_that_grows(tmp_path, rows):
    """Rows 50 and 51 are new; PEFT makes no room for them, nor for a whole embedding of 52 rows."""
    some = {"trainable_token_indices": {"embed_tokens": [50, 51], "lm_head": [50, 51]}}
    chosen = some if rows == "some" else {"modules_to_save": ["embed_tokens", "lm_head"]}
    grown = _llama()
    grown.resize_token_embeddings(52)
    made = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **chosen)
    model = peft.get_peft_model(grown, made).eval()
    inputs = {"input_ids": torch.tensor([[3, 50, 51, 7]])}
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"], **chosen}
    directory = save_adapter(tmp_path / "a", tensors, config)
    logits = model(**inputs).logits
    assert read_back(directory, base=_llama(), inputs=inputs, logits=logits).max_difference <= 1e-6
    base = _llama()
    assert grow_for_adapter(base, directory) == base.config.vocab_size == 52
    assert grow_for_adapter(base, directory) == 52
    assert grow_for_adapter(base, "someone/adapter") == 52

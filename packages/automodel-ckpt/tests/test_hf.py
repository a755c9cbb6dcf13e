"""Hugging Face directories: names, ties, conversions, adapters."""

import gc
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from automodel_ckpt import (
    AlreadyExists,
    CheckpointingConfig,
    StateMismatch,
    UnsupportedState,
    export_hf,
    load_adapter,
    save,
    save_adapter,
)
from automodel_ckpt.adapter import read_tensors
from automodel_ckpt.faults import ranks
from automodel_ckpt.hf import slices
from automodel_ckpt.hf.consolidate import consolidate

transformers = pytest.importorskip("transformers")

_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}),
}


def _model(family):
    name, extra = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **extra})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def _reads_back(model, directory):
    again, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert (set(info["missing_keys"]), set(info["unexpected_keys"])) == (set(), set())
    ids = torch.arange(9)[None]
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_size", ["5GB", "12KB"])
def test_exported_model_reads_back_with_equal_logits(tmp_path, family, shard_size):
    model = _model(family)
    export_hf(model, tmp_path / "out", shard_size=shard_size)
    _reads_back(model, tmp_path / "out")
    model.save_pretrained(tmp_path / "theirs")
    assert _names(tmp_path / "out") == _names(tmp_path / "theirs")


def _names(directory):
    from safetensors import safe_open

    found = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            found |= set(handle.keys())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_consolidated_checkpoint_equals_the_export(tmp_path, family):
    model = _model(family)
    export_hf(model, tmp_path / "export", shard_size="12KB")
    save(tmp_path / "run", {"model": model}, step=1)
    export_hf(tmp_path / "run", tmp_path / "out", assets=tmp_path / "export", shard_size="12KB")
    _reads_back(model, tmp_path / "out")
    assert _names(tmp_path / "out") == _names(tmp_path / "export")


def test_consolidate_refuses_the_small_files_of_a_model_of_another_size(tmp_path):
    model = _model("llama")
    export_hf(model, tmp_path / "before")
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 2)
    save(tmp_path / "run", {"model": model}, step=1)
    told = rf"is \[{rows + 2}, \d+\] in the checkpoint and \[{rows}, \d+\] by .*before/config.json.*RUN/final"
    with pytest.raises(StateMismatch, match=told):
        consolidate(tmp_path / "run", tmp_path / "out", assets=tmp_path / "before")
    assert not (tmp_path / "out").exists()


def test_sharded_model_exports_like_a_plain_one(fast_path):
    def work(rank):
        from torch.distributed.fsdp import fully_shard

        model = _model("mixtral")
        export_hf(fully_shard(model), fast_path / "sharded", dtype="bfloat16")
        save(fast_path / "run", {"model": model}, step=1)

    ranks.run(2, work)
    model = _model("mixtral")
    export_hf(model, fast_path / "plain", dtype=torch.bfloat16)
    consolidate(fast_path / "run", fast_path / "joined", assets=fast_path / "plain", dtype=torch.bfloat16)
    sharded, joined, plain = (fast_path / name / "model.safetensors" for name in ("sharded", "joined", "plain"))
    assert sharded.read_bytes() == plain.read_bytes()
    one, other = read_tensors(joined), read_tensors(plain)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert json.loads((fast_path / "sharded/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("slice_bytes", [20, 96])
def test_slices_of_any_size_give_the_same_file(fast_path, monkeypatch, slice_bytes):
    """Rows, parts of rows and single elements: of sharded experts cut through their fused halves, too."""
    monkeypatch.setattr(slices, "SLICE_BYTES", slice_bytes)
    plain = _model("mixtral")
    plain.save_pretrained(fast_path / "theirs")

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard, distribute_tensor

        model, mesh = _model("mixtral"), init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        for layer in model.model.layers:
            for name, dim in (("gate_up_proj", 1), ("down_proj", 2)):
                part = distribute_tensor(getattr(layer.mlp.experts, name).detach(), mesh["tp"], [Shard(dim)])
                setattr(layer.mlp.experts, name, nn.Parameter(part))
        fully_shard(model, mesh=mesh["dp"])
        export_hf(model, fast_path / "sharded")
        save(fast_path / "run", {"model": model}, step=1)

    ranks.run(2, work)
    consolidate(fast_path / "run", fast_path / "joined", assets=fast_path / "theirs")
    theirs = read_tensors(fast_path / "theirs/model.safetensors")
    for name in ("sharded", "joined"):
        ours = read_tensors(fast_path / name / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items()), name


def _extra_mib(action):
    """Peak memory beyond that at the start."""
    from pathlib import Path

    def mib(field):
        return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
    before = mib("VmRSS")
    action()
    return mib("VmHWM") - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("world_size", [1, 2])
def test_memory_of_export_and_consolidation_is_bounded(fast_path, world_size):
    """One tensor of 128 MiB: each step takes at most 64 MiB more than it had."""

    def work(rank):
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        model = nn.Linear(1 << 13, 1 << 13, bias=False, dtype=torch.bfloat16)
        if world_size > 1:
            fully_shard(model)
        warm_up = nn.Linear(8, 8)
        export_hf(warm_up, fast_path / "warm-up")
        save(fast_path / "run", {"model": model}, step=1)
        used = _extra_mib(lambda: export_hf(model, fast_path / "out", dtype=torch.float32))
        assert used <= 64

    def join(rank):
        small = nn.Linear(8, 8)
        save(fast_path / "small", {"model": small}, step=1)
        consolidate(fast_path / "small", fast_path / "small-joined")
        used = _extra_mib(lambda: consolidate(fast_path / "run", fast_path / "joined"))
        assert used <= 64

    ranks.run(world_size, work)
    ranks.run(1, join)
    assert (fast_path / "out/model.safetensors").stat().st_size > 256 << 20


def test_broken_tie_is_written_as_two_weights(tmp_path):
    model = _model("llama-tied")
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    export_hf(model, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    _reads_back(model, tmp_path / "out")


def test_export_refuses(tmp_path):
    model = _model("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(AlreadyExists):
        export_hf(model, tmp_path / "full")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(StateMismatch, match=r"model\.norm\.weight.*not finite"):
        export_hf(model, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
    adapted = nn.Module()
    adapted.register_parameter("x", nn.Parameter(torch.ones(1)))
    adapted.q = nn.Module()
    adapted.q.lora_A = nn.Linear(2, 2)
    with pytest.raises(UnsupportedState, match=r"q\.lora_A\.weight"):
        export_hf(adapted, tmp_path / "out")


def test_consolidate_refuses_the_trained_part_alone(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    save(tmp_path / "run", {"model": model}, step=1, trainable_only=True)
    with pytest.raises(UnsupportedState, match="without their base"):
        consolidate(tmp_path / "run", tmp_path / "out")


def _adapter():
    generator = torch.Generator().manual_seed(0)
    prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {}
    for layer in (0, 1):
        tensors[prefix.format(layer, "A")] = torch.randn(4, 16, generator=generator)
        tensors[prefix.format(layer, "B")] = torch.randn(16, 4, generator=generator)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    return tensors, config


def test_adapter_comes_back_and_loads_in_peft(tmp_path):
    tensors, config = _adapter()
    tokenizer = SimpleNamespace(save_pretrained=lambda path: (path / "tokenizer.json").write_text("{}"))
    save_adapter(tmp_path / "adapter", tensors, config, tokenizer=tokenizer, extra_files={"README.md": "hello"})
    again, read = load_adapter(tmp_path / "adapter")
    assert read == config
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert (tmp_path / "adapter/README.md").read_text() == "hello"
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(_model("llama"), str(tmp_path / "adapter"))
    assert torch.equal(
        model.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight,
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"],
    )


def test_adapter_refuses_nothing_nan_and_existing(tmp_path):
    tensors, config = _adapter()
    with pytest.raises(StateMismatch, match="without tensors"):
        save_adapter(tmp_path / "a", {}, config)
    broken = {**tensors, "base_model.model.x.lora_A.weight": torch.tensor([float("inf")])}
    with pytest.raises(StateMismatch, match=r"x\.lora_A\.weight"):
        save_adapter(tmp_path / "a", broken, config)
    assert list(tmp_path.iterdir()) == []
    save_adapter(tmp_path / "a", tensors, config)
    with pytest.raises(AlreadyExists):
        save_adapter(tmp_path / "a", tensors, config)
    save_adapter(tmp_path / "a", tensors, {**config, "r": 4}, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    "field", [{"model_save_format": "pickle"}, {"save_consolidated": "sometimes"}, {"max_recent_checkpoints": 0}]
)
def test_config_refuses_unknown_values(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        CheckpointingConfig(**field)


def test_config_gives_a_retention_rule():
    config = CheckpointingConfig(best_metric_key="-accuracy", max_recent_checkpoints=3, save_consolidated=True)
    assert (config.keep.last, config.keep.best, config.save_consolidated) == (3, ("accuracy", "max", 1), "every")

"""Base weights straight into shards."""

import re

import pytest
import torch

from automodel_ckpt import CheckpointNotFound, StateMismatch, UnsupportedState, export_hf
from automodel_ckpt.boxes import whole
from automodel_ckpt.faults import ranks
from automodel_ckpt.hf.base_weights import load_base_weights
from automodel_ckpt.hf.names import Group, disk_groups
from automodel_ckpt.hf.pieces import invert, pieces_of

transformers = pytest.importorskip("transformers")


def _llama(seed, **extra):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2, vocab_size=51, **extra
    )
    return transformers.LlamaForCausalLM(config)


def _equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(getattr(a, "full_tensor", lambda a=a: a)(), b) for a, b in pairs)


@pytest.mark.parametrize("tied", [True, False])
def test_plain_model(tmp_path, tied):
    source, target = _llama(0, tie_word_embeddings=tied), _llama(1, tie_word_embeddings=tied)
    export_hf(source, tmp_path / "base", shard_size="8KB")
    report = load_base_weights(target, tmp_path / "base")
    assert _equal(target, source)
    assert (report.missing, report.unexpected) == ((), ())


def test_each_rank_reads_its_share(fast_path):
    export_hf(_llama(0), fast_path / "base")

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        sharded, source = _llama(1), _llama(0)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        plan = {"model.layers.*.mlp.up_proj": ColwiseParallel(), "model.layers.*.mlp.down_proj": RowwiseParallel()}
        parallelize_module(sharded, mesh["tp"], plan)
        fully_shard(sharded, mesh=mesh["dp"])
        report = load_base_weights(sharded, fast_path / "base")
        assert _equal(sharded, source)
        size = sum(tensor.numel() * 4 for tensor in source.state_dict().values())
        assert 0.3 * size < report.bytes_read < 0.7 * size

    ranks.run(4, work)


def test_refusals(tmp_path):
    export_hf(_llama(0), tmp_path / "base")
    deeper = _llama(1)
    deeper.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(StateMismatch, match=r"missing \['model\.extra\.bias'"):
        load_base_weights(deeper, tmp_path / "base")
    assert load_base_weights(deeper, tmp_path / "base", strict=False).missing[0] == "model.extra.bias"
    with pytest.raises(CheckpointNotFound, match=r"nowhere/at_all does not exist.*snapshot_download"):
        load_base_weights(deeper, "nowhere/at_all")
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"such as 'model\.embed_tokens\.weight' are on the meta"),
    ):
        load_base_weights(_llama(0), tmp_path / "base")
    wider = _llama(1, head_dim=12)
    with pytest.raises(StateMismatch, match=r"q_proj\.weight: shape \[16, 16\] in .*, \[24, 16\] here"):
        load_base_weights(wider, tmp_path / "base")


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
VISION = {**TEXT, "image_size": 28, "patch_size": 14}
MOE = {**TEXT, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
# Families whose weights Transformers renames, fuses or both. Class -> configuration.
FAMILIES = {
    "MixtralForCausalLM": {**TEXT, "num_local_experts": 4},
    "PhimoeForCausalLM": {**TEXT, "num_local_experts": 4},
    "Qwen3MoeForCausalLM": {**MOE, "head_dim": 8},
    "OlmoeForCausalLM": MOE,
    "JambaForCausalLM": {
        **MOE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 2,
    },
    "DeepseekV3ForCausalLM": {
        **TEXT,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "GptOssForCausalLM": {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "LlavaForConditionalGeneration": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": {**TEXT, "head_dim": 8},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
    },
}


def _family(name, seed):
    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**FAMILIES[name]))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start equal everywhere
            parameter.copy_(torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_renamed_and_fused_families_equal_from_pretrained(tmp_path, family):
    """Written by Transformers under the hub's names, read by us: the bits that ``from_pretrained`` gives."""
    _family(family, 0).save_pretrained(tmp_path)
    target = _family(family, 1)
    report = load_base_weights(target, tmp_path)
    expected, info = getattr(transformers, family).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert _equal(target, expected)
    assert (report.missing, report.unexpected, report.loaded) == ((), (), len(target.state_dict()) - _tied(target))


def _tied(model):
    return len(model.state_dict()) - len({id(t) for t in model.state_dict(keep_vars=True).values()})


def _rewritten(folder, rename):
    """The same weights under other names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "family, rename",
    [
        ("LlavaForConditionalGeneration", lambda n: n.replace("vision_tower.", "vision_tower.vision_model.")),
        ("Gemma3ForConditionalGeneration", lambda n: n.replace("vision_tower.", "vision_tower.vision_model.")),
        (
            "Gemma3ForConditionalGeneration",
            lambda n: "model." + n.replace("language_model.model.", "language_model."),
        ),
        ("Qwen2_5_VLForConditionalGeneration", lambda n: re.sub(r"^model\.|^(?=visual)", "model.language_model.", n)
            .replace("language_model.visual", "visual")),
        ("MixtralForCausalLM", lambda n: n.removeprefix("model.")),
        ("MixtralForCausalLM", lambda n: n.replace("block_sparse_moe.gate.", "mlp.gate.")),
    ],
    ids=["llava-old", "gemma3-old", "gemma3-memory", "qwen-memory", "base-model", "mixtral-memory"],
)  # fmt: skip
def test_other_spellings_of_names(tmp_path, family, rename):
    _family(family, 0).save_pretrained(tmp_path)
    _rewritten(tmp_path, rename)
    expected, info = getattr(transformers, family).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    target = _family(family, 1)
    load_base_weights(target, tmp_path)
    assert _equal(target, expected)


def test_each_rank_reads_its_share_of_fused_experts(fast_path):
    _family("MixtralForCausalLM", 0).save_pretrained(fast_path)

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard, distribute_tensor

        source, sharded = _family("MixtralForCausalLM", 0), _family("MixtralForCausalLM", 1)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        for layer in sharded.model.layers:  # tensor parallel experts: cut through the fused gate and up halves
            for name, dim in (("gate_up_proj", 1), ("down_proj", 2)):
                weight = getattr(layer.mlp.experts, name)
                part = distribute_tensor(weight.detach(), mesh["tp"], [Shard(dim)])
                setattr(layer.mlp.experts, name, torch.nn.Parameter(part))
        fully_shard(sharded, mesh=mesh["dp"])
        report = load_base_weights(sharded, fast_path)
        assert _equal(sharded, source)
        size = sum(tensor.numel() * 4 for tensor in source.state_dict().values())
        assert 0.2 * size < report.bytes_read < 0.7 * size

    ranks.run(4, work)


def _interleaved(tensors):
    """What no box describes: odd and even rows apart, then cut."""
    fused = tensors["w"]
    rows = fused.reshape(fused.shape[0] // 2, 2, -1).transpose(0, 1).reshape(fused.shape)
    return dict(zip(("a", "b"), (part.contiguous() for part in rows.chunk(2))))


def _transposed(tensors):
    return {"a": tensors["w"].transpose(0, 1).contiguous(), "b": tensors["v"][2].contiguous(), "c": tensors["v"][:2]}


@pytest.mark.parametrize("conversion, shapes, in_pieces", [
    (_interleaved, {"w": (6, 4)}, False),
    (_transposed, {"w": (6, 4), "v": (3, 1, 5)}, True),
])  # fmt: skip
def test_pieces_and_inversion_undo_a_conversion(conversion, shapes, in_pieces):
    memory = {name: torch.randn(shape) for name, shape in shapes.items()}
    disk = conversion(memory)
    group = Group(tuple(memory), {name: tuple(tensor.shape) for name, tensor in disk.items()}, conversion)
    inverted = invert(group, disk, memory)
    assert all(torch.equal(inverted[name], memory[name]) for name in memory)
    pieces = pieces_of(group, memory)
    assert (pieces is not None) == in_pieces
    back = {name: torch.zeros_like(tensor) for name, tensor in memory.items()}
    for piece in pieces or ():
        box, view = piece.local(back[piece.memory])
        view.copy_(whole(disk[piece.disk].shape).view(disk[piece.disk], box))
    assert not in_pieces or all(torch.equal(back[name], memory[name]) for name in memory)


def test_conversion_that_computes_is_refused():
    memory = {"w": torch.randn(4)}
    group = Group(("w",), {"a": (4,)}, lambda tensors: {"a": tensors["w"].float() * 2})
    with pytest.raises(UnsupportedState, match=r"'w' is computed from 1 tensors on disk.*from_pretrained"):
        invert(group, {"a": memory["w"] * 2}, memory)


@pytest.mark.parametrize("family", ["LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_names_on_disk_do_not_depend_on_sharding(tmp_path, family):
    """FSDP2 changes class names, by which Transformers looks its conversions up."""
    plain = {name for group in disk_groups(_family(family, 0), _family(family, 0).state_dict()) for name in group.disk}

    def work(rank):
        from torch.distributed.fsdp import fully_shard

        model = _family(family, 0)
        fully_shard(model.model.language_model)
        fully_shard(model)
        assert {name for group in disk_groups(model, model.state_dict()) for name in group.disk} == plain
        assert type(model).__name__ == f"FSDP{family}"

    ranks.run(2, work)


def test_dry_run_compares_and_reads_nothing(tmp_path):
    export_hf(_llama(0), tmp_path / "base")
    with torch.device("meta"):
        target = _llama(1)
    report = load_base_weights(target, tmp_path / "base", dry_run=True)
    assert (report.bytes_read, report.missing, report.unexpected) == (0, (), ())
    with torch.device("meta"):
        wider = _llama(1, num_key_value_heads=1)
    with pytest.raises(StateMismatch, match=r"k_proj.*shape"):
        load_base_weights(wider, tmp_path / "base", dry_run=True)

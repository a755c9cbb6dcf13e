"""Base weights straight into shards."""

import pytest
import torch

from automodel_ckpt import StateMismatch, UnsupportedState, export_hf
from automodel_ckpt.faults import ranks
from automodel_ckpt.hf.base_weights import load_base_weights

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
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, num_local_experts=2,
    )  # fmt: skip
    mixtral = transformers.MixtralForCausalLM(config)
    with pytest.raises(UnsupportedState, match="fused at load"):
        load_base_weights(mixtral, tmp_path / "base")

"""The arguments handed to megatron-fsdp fit the installed library. It runs on CUDA only: nothing trains here."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from automodel_parallel import MegatronFSDPManager, NVFSDPManager, build_manager
from automodel_parallel.init import DistInfo

ALONE = DistInfo(0, 0, 1, torch.device("cpu"), None, True)


def test_arguments_fit_the_library() -> None:
    library = pytest.importorskip("megatron_fsdp", reason="the extra megatron-fsdp is not installed")
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    arguments = NVFSDPManager(grad_reduce_in_fp32=True, check_for_nan_in_grad=True).arguments(
        AutoModelForCausalLM.from_config(config)
    )
    mesh = {"device_mesh": None, "dp_shard_dim": "dp_shard_cp", "tp_dim": "tp", "device": None}
    inspect.signature(library.fully_shard_model).bind(None, **mesh, **arguments)
    assert arguments["fsdp_unit_modules"] == ["transformers.models.llama.modeling_llama.LlamaDecoderLayer"]
    assert arguments["calculate_per_token_loss"], "gradients are summed"
    assert arguments["report_nan_in_param_grad"]
    assert arguments["mixed_precision_policy"].grad_comm_dtype == torch.float32
    assert hasattr(library.MegatronFSDP, "set_model_auto_sync")
    assert callable(library.fully_shard_optimizer)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({}, "strategy megatron_fsdp on device 'cpu'"), ({"zero_dp_strategy": 4}, "zero_dp_strategy=4: it must be 0, 1")],
)
def test_mistakes(settings, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_manager("megatron_fsdp", **settings).setup(ALONE)
    assert issubclass(NVFSDPManager, MegatronFSDPManager)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from automodel_parallel import megatron_fsdp

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(megatron_fsdp, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'automodel-parallel\[megatron-fsdp\]'"):
        megatron_fsdp.load_library()

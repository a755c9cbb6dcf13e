"""The YAML short form, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from automodel_parallel import DDPManager, FSDP2Manager, ParallelDims, SingleProcessManager
from automodel_parallel.build import build_manager
from automodel_parallel.init import DistInfo

ALONE = DistInfo(0, 0, 1, torch.device("cpu"), None, True)


def test_strategies_by_name() -> None:
    assert isinstance(build_manager(None), SingleProcessManager)
    assert isinstance(build_manager("none", tp_size=1, dp_size="none"), SingleProcessManager)
    assert build_manager("ddp", bucket_cap_mb=1, tp_size=1) == DDPManager(bucket_cap_mb=1)
    assert build_manager("fsdp2", dp_replicate_size=2) == FSDP2Manager(dp_replicate_size=2)


@pytest.mark.parametrize(
    ("strategy", "settings", "text"),
    [
        ("fsdp", {}, "strategy 'fsdp': it must be one of ddp, fsdp2"),
        ("fsdp2", {"dp_sise": 2}, "strategy fsdp2 has no setting 'dp_sise': allowed are "),
        ("ddp", {"tp_size": 2}, "strategy ddp has no setting 'tp_size'"),
        ("none", {"dp_size": 2}, "strategy none has no setting 'dp_size'"),
    ],
)
def test_mistakes_name_what_is_allowed(strategy, settings, text) -> None:
    with pytest.raises(ValueError, match=text):
        build_manager(strategy, **settings)


def test_single_process_refuses_company() -> None:
    with pytest.raises(ValueError, match="strategy none with 2 processes: each would train alone"):
        SingleProcessManager().setup(DistInfo(0, 0, 2, torch.device("cpu"), "gloo", True))


def test_open_sizes_are_derived() -> None:
    dims = ParallelDims.derive(world_size=16, tp_size=2, cp_size=2, dp_replicate_size=2, dp_size="none")
    assert (dims.dp, dims.dp_replicate, dims.dp_shard, dims.cp, dims.tp, dims.pp, dims.ep) == (4, 2, 2, 2, 2, 1, 1)
    assert dims.describe() == "dp_replicate 2 x dp_shard 2 x cp 2 x tp 2"


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"world_size": 4, "tp_size": 3}, "dp 1 x tp 3 x cp 1 x pp 1 = 3 ranks, but the world size is 4"),
        ({"world_size": 4, "dp_size": 2}, "dp 2 x tp 1 x cp 1 x pp 1 = 2 ranks, but the world size is 4"),
        ({"world_size": 4, "dp_replicate_size": 3}, r"dp_replicate_size=3 with dp_size=4: .* one of \[1, 2, 4\]"),
        ({"world_size": 4, "ep_size": 3}, r"ep_size=3 with 4 sharding ranks .* one of \[1, 2, 4\]"),
        ({"world_size": 4, "tp_size": 0}, "tp_size=0: it must be a whole number >= 1"),
        ({"world_size": 4, "tp_size": "two"}, "tp_size='two': it must be a whole number >= 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes, text) -> None:
    with pytest.raises(ValueError, match=text):
        ParallelDims.derive(**sizes)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"params": "bfloat16"}, "mp_policy has unknown key 'params': allowed are param_dtype, reduce_dtype"),
        ({"param_dtype": "int8"}, "mp_policy.param_dtype='int8': it must be a floating dtype"),
    ],
)
def test_mixed_precision_mistakes(policy, text) -> None:
    with pytest.raises(ValueError, match=text):
        FSDP2Manager(mp_policy=policy).setup(ALONE)

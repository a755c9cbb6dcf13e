"""Averages, loss scales and skipped steps on FSDP2's shards."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from automodel_core.training import EMA, LossScaler, StepGuard


@pytest.fixture
def sharded(tmp_path):
    """Two linear layers under FSDP2, in a group of one process."""
    if dist.is_initialized():
        pytest.skip("another test holds the default process group")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield make_sharded(1)
    dist.destroy_process_group()


def make_sharded(size):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    mesh = init_device_mesh("cpu", (size,))
    for part in (model[0], model):
        fully_shard(part, mesh=mesh)
    return model


def weights(model):
    for module in (model, model[0]):
        module.reshard()
    return {name: p.full_tensor().clone() for name, p in model.named_parameters()}


def forward(tensors, x):
    hidden = F.linear(x, tensors["0.weight"], tensors["0.bias"])
    return F.linear(hidden, tensors["1.weight"], tensors["1.bias"])


def check_average(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    sharded = make_sharded(2)
    x = torch.ones(1, 4)
    start = weights(sharded)
    ema = EMA(sharded, decay=0.5)
    with torch.no_grad():
        for parameter in sharded.parameters():
            parameter.add_(1.0)
    ema.update(torch.tensor(0.0))
    trained = weights(sharded)
    with torch.no_grad():
        torch.testing.assert_close(sharded(x), forward(trained, x))  # leaves the root gathered, as validation does
        with ema.applied():
            mean = {name: 0.5 * start[name] + 0.5 * trained[name] for name in start}
            torch.testing.assert_close(sharded(x), forward(mean, x))
        torch.testing.assert_close(sharded(x), forward(trained, x))
        assert not torch.allclose(forward(mean, x), forward(trained, x))
    other = EMA(sharded, decay=0.5)
    whole = {name: average.full_tensor() for name, average in ema.state_dict()["averages"].items()}
    other.load_state_dict({"decay": 0.5, "averages": whole})  # as a checkpoint hands them over
    for name, average in other.state_dict()["averages"].items():
        assert torch.equal(average.full_tensor(), whole[name])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.more
def test_the_average_is_measured_and_taken_back(tmp_path):
    # Children of the fork server are not torn down under gloo's threads, which can abort a process that has finished.
    mp.start_processes(check_average, args=(f"{tmp_path}/store",), nprocs=2, start_method="forkserver")


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_and_halves_the_scale(fused, sharded):
    optimizer = torch.optim.AdamW(sharded.parameters(), lr=0.1, fused=fused)
    guard, scaler = StepGuard(), LossScaler(init_scale=8.0, growth_interval=100)
    for factor, moves in ((1.0, True), (float("inf"), False), (1.0, True)):
        before = weights(sharded)
        optimizer.zero_grad()
        scaler.scale(sharded(torch.ones(1, 4)).sum() * factor).backward()
        scaler.unscale_(sharded.parameters())
        gradients = [p.grad.full_tensor() for p in sharded.parameters()]
        if moves:
            assert torch.equal(gradients[-1], torch.ones(4))
        norm = torch.stack([grad.norm() for grad in gradients]).norm()
        scaler.update(guard.step(optimizer, norm))
        after = weights(sharded)
        assert any(not torch.equal(before[name], after[name]) for name in before) == moves
    assert scaler.state_dict()["scale"] == 4.0

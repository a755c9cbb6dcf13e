"""Every topology loads what every other one wrote, bit for bit."""

import zlib

import pytest
import torch
from torch import nn

from automodel_ckpt import load, save
from automodel_ckpt.boxes import Box, local_part, tiles, whole
from automodel_ckpt.faults import ranks

# name -> (ranks, axes of the mesh)
TOPOLOGIES = {
    "plain": (1, {}),
    "ddp2": (2, {}),
    "fsdp2": (2, {"fsdp": 2}),
    "tp2": (2, {"tp": 2}),
    "ddp4": (4, {}),
    "fsdp4": (4, {"fsdp": 4}),
    "tp4": (4, {"tp": 4}),
    "fsdp2xtp2": (4, {"fsdp": 2, "tp": 2}),
    "hsdp2x2": (4, {"replicate": 2, "fsdp": 2}),
}


class Net(nn.Module):
    """Odd sizes, a tie, and buffers of every awkward kind."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6, bias=False)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mask", torch.zeros(5, dtype=torch.bool))
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("turned", torch.zeros(3, 4, dtype=torch.bfloat16).t())


def _content(name: str, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(-99, 99, tuple(like.shape), generator=generator).to(like.dtype)


def _make(topology: str):
    """Model and optimizer with state, laid out for the topology."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    _, axes = TOPOLOGIES[topology]
    model = Net()
    mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes)) if axes else None
    if "tp" in axes:
        parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if "fsdp" in axes:
        fully_shard(model, mesh=mesh["replicate", "fsdp"] if "replicate" in axes else mesh["fsdp"])
    wrapped = nn.parallel.DistributedDataParallel(model) if topology.startswith("ddp") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return wrapped, model, optimizer


def _tensors(model, optimizer):
    for name, tensor in model.state_dict().items():
        yield name.replace("head", "embed"), tensor
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            yield f"{name}.{key}", optimizer.state[parameter][key]


def _full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _fill(model, optimizer, *, clear=False):
    for name, tensor in _tensors(model, optimizer):
        box, local = local_part(tensor)
        content = _content(name, tensor)
        local.copy_(torch.zeros_like(local) if clear else whole(tensor.shape).view(content, box))
        # Gathering by torch checks our idea of which part this rank holds.
        assert clear or torch.equal(_full(tensor), content), (name, box)


def _write(folder, size):
    def work(rank):
        for topology, (ranks_of, _) in TOPOLOGIES.items():
            if ranks_of == size:
                wrapped, model, optimizer = _make(topology)
                _fill(model, optimizer)
                save(folder / topology, {"model": wrapped, "optim": optimizer, "rank": {"r": rank}}, step=1)

    return work


def _read(folder, size):
    def work(rank):
        for topology, (ranks_of, _) in TOPOLOGIES.items():
            if ranks_of != size:
                continue
            wrapped, model, optimizer = _make(topology)
            for source, (writers, _) in TOPOLOGIES.items():
                _fill(model, optimizer, clear=True)
                own = {"r": -1}
                report = load(folder / source, {"model": wrapped, "optim": optimizer, "rank": own})
                assert own["r"] == (rank if rank < writers else -1)
                assert bool(report.notes) == (rank >= writers)
                for name, tensor in _tensors(model, optimizer):
                    assert torch.equal(_full(tensor), _content(name, tensor)), (source, topology, name)

    return work


def test_every_pair_of_topologies(fast_path):
    for size in (1, 2, 4):
        ranks.run(size, _write(fast_path, size))
    for size in (1, 2, 4):
        ranks.run(size, _read(fast_path, size), timeout_s=120)


def test_each_part_is_written_once_and_work_is_shared(fast_path):
    def work(rank):
        model = nn.parallel.DistributedDataParallel(nn.Sequential(*[nn.Linear(40, 40) for _ in range(8)]))
        save(fast_path, {"model": model}, step=1)

    ranks.run(4, work)
    sizes = [p.stat().st_size for p in sorted((fast_path / "step-00000001/model").iterdir())]
    assert len(sizes) == 4
    assert max(sizes) < 1.5 * min(sizes)


def test_ranks_that_disagree_are_told_so(fast_path):
    def work(rank):
        for state, step, message in (
            ({"train": {"x": rank}}, 1, "differs between ranks.*'rank'"),
            ({"train": {"x": 1}}, rank, "save different steps"),
            ({"train" if rank else "other": {"x": 1}}, 2, "different sections"),
            ({"model": nn.Linear(2, 2 + rank)}, 3, "is .* on rank 0 and .* on rank 1"),
        ):
            with pytest.raises(RuntimeError, match=message):
                save(fast_path, state, step=step)

    ranks.run(2, work)
    assert list(fast_path.glob("step-*")) == []


@pytest.mark.parametrize(
    "boxes, problem",
    [
        ([((0, 0), (2, 3)), ((2, 0), (2, 3))], None),
        ([((0, 0), (4, 1)), ((0, 1), (4, 2))], None),
        ([((0, 0), (2, 3))], "hold 6 of 12"),
        ([((0, 0), (3, 3)), ((2, 0), (1, 3))], "overlap"),
        ([((0, 0), (4, 4))], "outside"),
    ],
)
def test_tiling(boxes, problem):
    found = tiles((4, 3), [Box(*box) for box in boxes])
    assert found is None if problem is None else problem in found

"""Vocabulary-parallel cross-entropy over gloo: even and uneven shards, DTensor logits, equal to one process."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from automodel_kernels import TEParallelCrossEntropy
from automodel_kernels.ops import vocab_parallel_cross_entropy

V = 21


def problem():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, V, generator=generator)
    labels = torch.randint(0, V, (2, 5), generator=generator)
    labels[0, 0], labels[0, 1], labels[1, 1] = -100, 0, V - 1
    upstream = torch.randn(2, 5, generator=generator)
    return logits, labels, upstream


def expected():
    logits, labels, upstream = problem()
    logits.requires_grad_()
    losses = F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="none").reshape(2, 5)
    (grad,) = torch.autograd.grad(losses, logits, upstream)
    return losses.detach(), grad


def worker(rank, world, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for cut in (11, 3):  # even and uneven shards
        check_local_shards(rank, cut)
    check_dtensor(world)
    logits, labels, _ = problem()
    labels[0, 2] = V
    with pytest.raises(ValueError, match="belongs to no vocabulary shard"):
        vocab_parallel_cross_entropy(logits.chunk(world, dim=-1)[rank], labels)
    dist.destroy_process_group()


def check_local_shards(rank, cut):
    logits, labels, upstream = problem()
    want, want_grad = expected()
    start, stop = (0, cut) if rank == 0 else (cut, V)
    local = logits[..., start:stop].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(local, labels, reduction="none")
    torch.testing.assert_close(losses, want)
    (grad,) = torch.autograd.grad(losses, local, upstream)
    torch.testing.assert_close(grad, want_grad[..., start:stop])
    assert torch.equal(local, logits[..., start:stop]), "the logits were overwritten"


def check_dtensor(world):
    logits, labels, _ = problem()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))
    whole = distribute_tensor(logits, mesh, [Shard(2)]).requires_grad_()
    loss = TEParallelCrossEntropy()(whole, labels, 7)
    total, leaf = one_process_sum()
    torch.testing.assert_close(loss, total / 7)
    loss.backward()
    torch.testing.assert_close(whole.grad.full_tensor(), torch.autograd.grad(total, leaf)[0] / 7)


def one_process_sum():
    logits, labels, _ = problem()
    logits.requires_grad_()
    return F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="sum"), logits


def test_two_ranks_equal_one_process(tmp_path):
    # Children of the fork server are not torn down under gloo's threads, which can abort a process that has finished.
    mp.start_processes(worker, args=(2, str(tmp_path)), nprocs=2, start_method="forkserver")


def test_dtensor_logits_must_be_split_over_the_vocabulary(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        logits, labels, _ = problem()
        with pytest.raises(ValueError, match="exactly one axis must shard dim 2"):
            TEParallelCrossEntropy()(distribute_tensor(logits, mesh, [Shard(0)]), labels, 7)
    finally:
        dist.destroy_process_group()

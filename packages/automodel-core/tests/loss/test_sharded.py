"""Losses on DTensors: FSDP2 and a tensor-parallel head over two gloo processes equal one process."""

import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from automodel_core.loss import (
    ChunkedCrossEntropy,
    FusedLinearCrossEntropy,
    KDLoss,
    MaskedCrossEntropy,
    forward_kd_loss,
    forward_loss,
    hf_loss,
    shift_labels,
)
from automodel_core.peft import PeftConfig, adapter_state_dict, apply_lora, init_lora


def make_batch():
    ids = torch.randint(3, 96, (2, 10), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(10) < 5, -100)}


def make_model():
    from core_families import build

    return build("llama", vocab_size=96)


def gradients(model):
    whole = lambda t: t.full_tensor() if isinstance(t, DTensor) else t  # noqa: E731
    return {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def on_two_ranks(rank, path, body):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    try:
        body()
    finally:
        dist.destroy_process_group()


def run(body):
    with tempfile.TemporaryDirectory() as folder:
        # The fork server's children are not torn down under gloo's threads, which can abort a finished process.
        mp.start_processes(on_two_ranks, args=(f"{folder}/store", body), nprocs=2, start_method="forkserver")


def check_fsdp():
    batch = shift_labels(make_batch())
    want_model = make_model()
    want = forward_loss(want_model, batch, MaskedCrossEntropy(), 10)
    want.backward()
    model = make_model()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp_shard",))
    for layer in (*model.model.layers, model.lm_head, model):
        fully_shard(layer, mesh=mesh)
    loss = forward_loss(model, batch, FusedLinearCrossEntropy(), 10)
    loss.backward()
    torch.testing.assert_close(loss, want)
    compare(gradients(model), gradients(want_model))


def check_distillation_under_fsdp():
    from core_families import build

    batch, loss_fn = shift_labels(make_batch()), KDLoss(2.0, 0.5, chunk_size=4)
    teacher = build("gemma2", vocab_size=96, hidden_size=48)
    want_model, model = make_model(), make_model()
    want = forward_kd_loss(want_model, teacher, batch, loss_fn, 10)
    want.backward()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp_shard",))
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    loss = forward_kd_loss(model, teacher, batch, loss_fn, 10)
    loss.backward()
    torch.testing.assert_close(loss, want)
    compare(gradients(model), gradients(want_model))


def check_tensor_parallel_head():
    batch = shift_labels(make_batch())
    want_model = make_model()
    forward_loss(want_model, batch, MaskedCrossEntropy(), 10).backward()
    for layouts in (Replicate(), Shard(-1)):
        model = make_model()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        plan = ColwiseParallel(output_layouts=layouts, use_local_output=False)
        parallelize_module(model, mesh, {"lm_head": plan})
        for loss_fn in (FusedLinearCrossEntropy(), MaskedCrossEntropy(), ChunkedCrossEntropy(4)):
            model.zero_grad()
            forward_loss(model, batch, loss_fn, 10).backward()
            compare(gradients(model), gradients(want_model))


def check_init_on_shards():
    config = PeftConfig(target_modules=["q_proj"], dim=4)
    whole, model = make_model(), make_model()
    for m in (whole, model):
        apply_lora(m, config, seed=0)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp_shard",))
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    init_lora(model, 7)
    init_lora(whole, 7)
    got = adapter_state_dict(model)
    for key, tensor in adapter_state_dict(whole).items():
        assert torch.equal(got[key], tensor), key


def compare(got, want):
    assert set(got) == set(want)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.more
@pytest.mark.parametrize(
    "body", [check_fsdp, check_distillation_under_fsdp, check_tensor_parallel_head, check_init_on_shards]
)
def test_two_processes_equal_one(body):
    run(body)


def test_a_sharded_weight_and_hidden_states_are_gathered(tmp_path):
    if dist.is_initialized():
        pytest.skip("another test holds the default process group")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
        labels = torch.randint(0, 11, (2, 5))
        want = FusedLinearCrossEntropy()(hidden, labels, 10, weight=weight)
        want_grads = torch.autograd.grad(want, (hidden, weight))
        shards = distribute_tensor(hidden, mesh, [Replicate()]), distribute_tensor(weight, mesh, [Shard(0)])
        leaves = [t.detach().requires_grad_() for t in shards]
        got = FusedLinearCrossEntropy()(leaves[0], labels, 10, weight=leaves[1])
        torch.testing.assert_close(got, want)
        for grad, want_grad in zip(torch.autograd.grad(got, leaves), want_grads, strict=True):
            torch.testing.assert_close(grad.full_tensor(), want_grad)
        plain = (hidden @ weight.T).detach()
        teacher = torch.randn(2, 5, 11)
        losses = {
            "masked": lambda logits, other: MaskedCrossEntropy()(logits, labels, 10),
            "chunked": lambda logits, other: ChunkedCrossEntropy(3)(logits, labels, 10),
            "kd": lambda logits, other: KDLoss(2.0, 0.5, chunk_size=3)(logits, other, labels, 10),
            "hf": lambda logits, other: hf_loss(MaskedCrossEntropy())({"logits": logits}, labels, 10),
        }
        for name, loss in losses.items():
            whole = plain.clone().requires_grad_()
            sharded = distribute_tensor(plain, mesh, [Shard(2)]).requires_grad_()
            want = loss(whole, teacher)
            got = loss(sharded, distribute_tensor(teacher, mesh, [Shard(2)]))
            torch.testing.assert_close(got, want, msg=lambda text, n=name: f"{n}: {text}")
            (want_grad,), (grad,) = torch.autograd.grad(want, whole), torch.autograd.grad(got, sharded)
            torch.testing.assert_close(grad.full_tensor(), want_grad, msg=lambda text, n=name: f"{n}: {text}")
            assert want_grad.abs().max() > 1e-3
    finally:
        dist.destroy_process_group()

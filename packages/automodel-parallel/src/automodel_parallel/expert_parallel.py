"""Expert parallelism: each rank holds a part of the experts, and tokens travel to the experts they chose.

Works on Hugging Face's expert layout: a module with ``num_experts`` and three-dimensional weights, called with hidden
states, chosen experts and their weights. Its own forward (loop or grouped matrix product) runs on the tokens received.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from automodel_parallel import collectives
from automodel_parallel.local_parameters import distribute, local_parameters
from automodel_parallel.report import ParallelReport


def apply_expert_parallel(model: nn.Module, mesh: DeviceMesh, *, report: ParallelReport) -> set[nn.Parameter]:
    """Spread the experts of every mixture-of-experts layer over a one-axis mesh, in place.

    Each rank sees the tokens of all ranks that chose its experts, so expert gradients are complete without a reduction
    over that mesh.

    Returns: the expert parameters, which FSDP2 must leave alone.
    Raises: ValueError: the model has no experts in this layout, or the mesh does not divide them.
    """
    layers = [(name, module) for name, module in model.named_modules() if _holds_experts(module)]
    if not layers:
        raise ValueError(
            f"ep_size={mesh.size()} on {type(model).__name__}: it has no experts (a module with num_experts and 3-D "
            "weights). Set ep_size to 1."
        )
    experts: set[nn.Parameter] = set()
    for name, module in layers:
        if module.num_experts % mesh.size():
            raise ValueError(
                f"ep_size={mesh.size()} with {module.num_experts} experts in {name!r}: it must divide. Change it."
            )
        for key, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[key] = distribute(parameter, mesh, [Shard(0)], {})
        experts |= set(module.parameters(recurse=False))
        module.num_experts //= mesh.size()
        module.forward = _dispatching(module, mesh.get_group())
    report.add(
        f"expert parallel: {len(layers)} layers, {layers[0][1].num_experts} experts on each of {mesh.size()} ranks"
    )
    return experts


def _holds_experts(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    count = getattr(module, "num_experts", None)
    return any(p.ndim == 3 for p in parameters) and all(p.shape[0] == count for p in parameters)


def _dispatching(module: nn.Module, group: dist.ProcessGroup) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    forward, held = module.forward, int(module.num_experts)

    def dispatching_forward(hidden_NH: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        chosen = chosen_NK.flatten()
        order = torch.argsort(chosen, stable=True)
        send_counts = torch.bincount(chosen // held, minlength=group.size())
        receive_counts = torch.empty_like(send_counts)
        dist.all_to_all_single(receive_counts, send_counts, group=group)
        # Lengths of messages are host numbers: the one wait for the device per layer.
        send, receive = send_counts.tolist(), receive_counts.tolist()
        rows = hidden_NH[order // chosen_NK.shape[1]]
        arrived = collectives.all_to_all(rows, group, send=send, receive=receive)
        expert = collectives.all_to_all(chosen[order], group, send=send, receive=receive) - group.rank() * held
        local = {key: p.to_local().to(arrived.dtype) for key, p in module.named_parameters(recurse=False)}
        with local_parameters(module, replace=local):
            done = forward(arrived, expert[:, None], torch.ones_like(expert[:, None], dtype=arrived.dtype))
        # A rank that nobody chose still takes part in the exchange of the backward.
        done = done + 0.0 * arrived
        returned = collectives.all_to_all(done, group, send=receive, receive=send)
        back_NKH = returned[torch.argsort(order)].view(*chosen_NK.shape, -1)
        return (back_NKH * weight_NK.unsqueeze(-1).to(back_NKH.dtype)).sum(dim=1)

    return dispatching_forward

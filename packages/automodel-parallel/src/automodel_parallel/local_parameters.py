"""Run a module's own forward on the local parts of its DTensor parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor


def distribute(
    parameter: nn.Parameter,
    mesh: DeviceMesh,
    placements: Sequence[Placement],
    memo: dict[nn.Parameter, nn.Parameter],
) -> nn.Parameter:
    """Cut a parameter that every rank holds whole into its DTensor, without communication; ties are kept by ``memo``.

    Raises: ValueError: a tied parameter is asked for in two layouts.
    """
    if parameter in memo:
        tied = memo[parameter]
        assert isinstance(tied.data, DTensor)
        if tuple(tied.data.placements) != tuple(placements):
            raise ValueError(
                f"a tied parameter of shape {tuple(parameter.shape)} is planned as {tied.data.placements} and as "
                f"{tuple(placements)}: tied modules need one layout. Plan the embedding as embedding_rowwise and the "
                "head as colwise."
            )
        return tied
    data = distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None)
    memo[parameter] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return memo[parameter]


@contextmanager
def local_parameters(
    module: nn.Module,
    gradients: Mapping[str, Sequence[Placement]] | None = None,
    replace: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Inside, the module's (and its children's) DTensor parameters are plain tensors, so that any kernel runs on them.

    Args:
        module: its forward runs inside the block.
        gradients: by parameter name, how the gradient of the local part is laid out; missing: like the parameter.
            ``Partial`` says that each rank computes one term of the sum.
        replace: by parameter name, a tensor to use in place of the local part.
    """
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for path, parameter in list(module.named_parameters(remove_duplicate=False)):
            data: Tensor = parameter
            if replace and path in replace:
                data = replace[path]
            elif isinstance(parameter, DTensor):
                data = parameter.to_local(grad_placements=(gradients or {}).get(path))
            else:
                continue
            parent_path, _, name = path.rpartition(".")
            parent = module.get_submodule(parent_path)
            del parent._parameters[name]
            parent.__dict__[name] = data
            swapped.append((parent, name, parameter))
        yield
    finally:
        for parent, name, parameter in swapped:
            parent.__dict__.pop(name)
            parent._parameters[name] = parameter


def local_chunk_sizes(length: int, parts: int) -> list[int]:
    """Lengths of DTensor's shards of a dimension: like ``torch.chunk``, the last ones shorter or empty."""
    size = -(-length // parts)
    return [max(min(size, length - rank * size), 0) for rank in range(parts)]


def require_floating(name: str, parameter: Tensor) -> None:
    """Raises: ValueError: a quantised weight, whose storage cannot be cut along a dimension."""
    if not torch.is_floating_point(parameter):
        raise ValueError(
            f"parameter {name} has dtype {parameter.dtype}: tensor parallelism cuts floating-point weights only. Load "
            "the model unquantised, or set tp_size to 1."
        )

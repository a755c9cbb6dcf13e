"""Tensors without memory: run a real training step to see its shapes, its storage and its communication."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from automodel_recipes.memory.live import is_traceable_wrapper_subclass_type

_WHOLE_NUMBERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_ARANGE = (torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step)
_COMPARISONS = (torch.ops.aten.allclose.default, torch.ops.aten.equal.default)
_aten = torch.ops.aten
# What floats without values compare to: nothing is equal, larger or smaller, which is how ordinary data take their way.
_ORDER = {
    op: name == "ne"
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for op in (getattr(_aten, name).Scalar, getattr(_aten, name).Tensor)
}
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
# Above this many elements a whole-number result stays without memory too: masks of very long rows.
_MOST_REAL_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Collective:
    """One collective call of this rank."""

    op: str
    """Its operator, such as ``_allgather_base_``."""
    group: tuple[int, ...]
    """Global ranks that take part."""
    size: int
    """Bytes of the larger of input and output."""


class GhostTensors(TorchDispatchMode):
    """Within the block floating-point tensors have a shape and no memory; ids, masks and counts are real.

    Code that looks at values (is anything masked? how large is this image?) thus takes the same way as in a real run,
    and no collective waits for another rank: each returns at once and is written down in ``collectives``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented
        if func.namespace == "c10d":
            return self._collective(func, args)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func in _COMPARISONS:
                return True  # checks of values, which are there to fail in real runs
            if func is torch.ops.aten._local_scalar_dense.default and _is_unknown_float(args[0]):
                return 0.0  # such as the error of a fused kernel against what it replaces
            if func in _ORDER and _broadcast_elements(tensors) <= _MOST_REAL_ELEMENTS:
                shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
                with _disable_current_modes():
                    return torch.full(shape, _ORDER[func])
            return func(*_without_boolean_indices(func, args), **kwargs)
        if _stays_real(func, tensors, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _collective(self, func: Any, args: Sequence[Any]) -> Any:
        from torch._C._distributed_c10d import FakeWork, ProcessGroup, Work

        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        groups = [a for a in args if isinstance(a, torch.ScriptObject)]
        ranks: tuple[int, ...] = ()
        if groups:
            ranks = tuple(torch.distributed.get_process_group_ranks(ProcessGroup.unbox(groups[0])))
        sizes = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, torch.Tensor)) for a in args]
        self.collectives.append(Collective(func.name().split("::")[-1], ranks, max(sizes) if tensors else 0))
        work = Work.boxed(FakeWork())
        returns = func._schema.returns
        return work if len(returns) == 1 else (args[0], work)


class EqualChunks(TorchFunctionMode):
    """``torch.chunk`` of tensors without memory, with one object for all chunks of a size.

    Sharding cuts each parameter into as many chunks as there are ranks and keeps one: this way a thousand ranks cost
    what two do.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.chunk and isinstance(args[0], FakeTensor):
            return _equal_chunks(*args, **kwargs)
        return func(*args, **kwargs)


def _equal_chunks(tensor: torch.Tensor, chunks: int, dim: int = 0) -> list[torch.Tensor]:
    length = tensor.shape[dim]
    size = max(-(-length // chunks), 1)
    pieces = [tensor.narrow(dim, 0, size)] * (length // size)
    rest = length % size
    return pieces + ([tensor.narrow(dim, length - rest, rest)] if rest else [])


@contextlib.contextmanager
def ghost_tensors() -> Iterator[GhostTensors]:
    """Enter the mode; the state of torch's random generators is put back afterwards."""
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), GhostTensors() as ghost:
        yield ghost


def _is_unknown_float(tensor: Any) -> bool:
    """A float whose value nothing tells: those made from a Python number, such as an optimizer's steps, know theirs."""
    return tensor.dtype not in _WHOLE_NUMBERS and getattr(tensor, "constant", None) is None


def _without_boolean_indices(func: Any, args: Any) -> Any:
    """Indices of real masks, since a tensor without values cannot say how many of its elements are true."""
    if func not in _INDEXING:
        return args
    indices: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor):
            with _disable_current_modes():
                indices.extend(index.nonzero(as_tuple=True))
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


def _stays_real(func: Any, tensors: Sequence[torch.Tensor], kwargs: Any) -> bool:
    dtype = kwargs.get("dtype")
    if not tensors:
        return dtype in _WHOLE_NUMBERS or (dtype is None and func in _ARANGE)
    if any(tensor.dtype not in _WHOLE_NUMBERS for tensor in tensors) or (dtype or torch.int64) not in _WHOLE_NUMBERS:
        return False
    return _broadcast_elements(tensors) <= _MOST_REAL_ELEMENTS


def _broadcast_elements(tensors: Sequence[torch.Tensor]) -> int:
    try:
        return torch.Size(torch.broadcast_shapes(*(tensor.shape for tensor in tensors))).numel()
    except RuntimeError:
        return max(tensor.numel() for tensor in tensors)

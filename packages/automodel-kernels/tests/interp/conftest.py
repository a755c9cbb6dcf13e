"""Runs one op on the Triton kernel, on torch in the same dtype, and on torch in float64, and compares everything."""

from dataclasses import dataclass

import pytest
import torch

from automodel_kernels.backend import use_backend
from automodel_kernels.testing import assert_as_good_as, guarded, guards_intact, mutations


@dataclass
class Results:
    """Outputs and gradients of one op, by name, from three implementations."""

    kernel: dict
    twin: dict
    reference: dict

    def check(self, only=None):
        """Assert the bound for each tensor."""
        for name, reference in self.reference.items():
            if only is None or name in only:
                assert_as_good_as(name, self.kernel[name], self.twin[name], reference)

    def check_mutations(self):
        """Assert that each planted fault in each tensor breaks the bound."""
        for name, reference in self.reference.items():
            if not bool(reference.any()):
                continue
            for fault, mutated in mutations(self.kernel[name]):
                assert not accepted(name, mutated, self.twin[name], reference), f"{name}: the bound accepts {fault}"


def accepted(*args):
    """Whether the bound accepts a tensor."""
    try:
        assert_as_good_as(*args)
    except AssertionError:
        return False
    return True


def run(function, inputs, upstream, *, backend, dtype=None):
    leaves = {}
    for name, tensor in inputs.items():
        if dtype is not None:
            tensor = tensor.to(dtype)
        elif backend == "triton" and tensor.is_contiguous():
            tensor = guarded(tensor)
        else:
            tensor = tensor.detach().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        leaves[name] = tensor.detach().requires_grad_() if not hasattr(tensor, "_guard_buffer") else tensor
        leaves[name].requires_grad_()
    with use_backend(backend):
        outputs = function(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(upstream(outputs), outputs)])
    for name, leaf in leaves.items():
        if hasattr(leaf, "_guard_buffer"):
            assert guards_intact(leaf), f"the guard band around {name} was overwritten"
    found = {f"out{i}": output.detach() for i, output in enumerate(outputs)}
    return found | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def random_upstream(outputs):
    """Upstream gradients that differ for every element."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(output.shape, generator=generator) for output in outputs]


@pytest.fixture
def three_ways():
    """``three_ways(function, inputs, upstream=...)`` gives :class:`Results`."""

    def compare(function, inputs, upstream=random_upstream):
        return Results(
            run(function, inputs, upstream, backend="triton"),
            run(function, inputs, upstream, backend="torch"),
            run(function, inputs, upstream, backend="torch", dtype=torch.float64),
        )

    return compare

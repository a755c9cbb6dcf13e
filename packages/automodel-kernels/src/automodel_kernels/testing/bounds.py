"""The bound of every kernel test, against a float64 reference.

``rel(kernel) <= 2 rel(torch in the same dtype) + c(dtype)`` with ``rel = ||difference|| / ||reference||``, and a norm
ratio in [0.98, 1.02]. A bound that accepts zeros, a dropped part or a shifted result is no bound, so tests assert that
each of :func:`mutations` fails it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

SLACK = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """``||actual - reference|| / ||reference||`` in float64; infinite when ``actual`` is not finite."""
    actual, reference = actual.detach().double(), reference.detach().double()
    if not bool(torch.isfinite(actual).all()):
        return float("inf")
    scale = float(reference.norm())
    difference = float((actual - reference).norm())
    return difference / scale if scale else difference


def assert_as_good_as(name: str, actual: Tensor, twin: Tensor, reference: Tensor) -> None:
    """Assert that a kernel's tensor is as close to the float64 reference as torch's own, and as large.

    Args:
        name: what the tensor is, for the message.
        actual: the kernel's; twin: torch's in the same dtype; reference: float64.
    """
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    if reference.numel() == 0:
        return
    bound = 2 * relative_error(twin, reference) + SLACK[actual.dtype]
    error = relative_error(actual, reference)
    assert error <= bound, f"{name}: relative error {error:.2e} exceeds {bound:.2e}"
    norm = float(reference.double().norm())
    if norm:
        ratio = float(actual.double().norm()) / norm
        assert 0.98 <= ratio <= 1.02, f"{name}: norm ratio {ratio:.4f} outside [0.98, 1.02]"


def mutations(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Faulty versions of a correct result that any useful bound rejects."""
    yield "zeros", torch.zeros_like(tensor)
    yield "doubled", tensor * 2
    yield "nan", torch.full_like(tensor, float("nan"))
    if tensor.numel() > 1 and tensor.detach().unique().numel() > 1:
        yield "shifted by one", tensor.flatten().roll(1).reshape(tensor.shape)
        dropped = tensor.detach().clone().flatten()
        dropped[: max(1, dropped.numel() // 4)] = 0
        if not torch.equal(dropped, tensor.detach().flatten()):
            yield "first block dropped", dropped.reshape(tensor.shape)

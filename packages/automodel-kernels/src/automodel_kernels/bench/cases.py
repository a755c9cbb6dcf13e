"""The ops that are measured: their inputs, the least work they can do, and who computes them.

``flops`` and ``min_bytes`` count what no implementation can avoid: matrix products at the labelled tokens alone, each
input read once and each output written once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from automodel_kernels.bench.shapes import Shape

Inputs = dict[str, Tensor]
Work = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One op: inputs by name, the names whose gradients are wanted, and its least FLOPs and bytes."""

    op: str
    make: Callable[[Shape, torch.dtype, torch.device, int], Inputs]
    leaves: tuple[str, ...]
    work: Callable[[Shape, int, bool], Work]
    """``(shape, bytes an element, with backward)`` to FLOPs and bytes."""


def _tensors(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int, **sizes: tuple[int, ...]) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator).to(device, dtype) for name, size in sizes.items()}


def _labels(shape: Shape, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, shape.V, (shape.T,), generator=generator)
    ignored = torch.randperm(shape.T, generator=generator)[: shape.T - round(shape.T * shape.valid)]
    labels[ignored] = -100
    return labels.to(device)


def _make_linear_ce(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    inputs = _tensors(shape, dtype, device, seed, hidden=(shape.T, shape.H), weight=(shape.V, shape.H))
    inputs["weight"] *= shape.H**-0.5
    labels = _labels(shape, torch.device("cpu"), seed)
    index = (labels != -100).nonzero().squeeze(-1)
    return inputs | {"labels": labels.to(device), "label_index": index.to(device)}


def _work_linear_ce(shape: Shape, size: int, backward: bool) -> Work:
    product = 2.0 * shape.T * shape.valid * shape.V * shape.H
    weights = shape.V * shape.H * size
    hidden = shape.T * shape.H * size
    return (3 if backward else 1) * product, (2 if backward else 1) * (weights + hidden)


def _make_ce(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    inputs = _tensors(shape, dtype, device, seed, logits=(shape.T, shape.V))
    return inputs | {"labels": _labels(shape, device, seed)}


def _make_norm(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    return _tensors(shape, dtype, device, seed, x=(shape.T, shape.H), weight=(shape.H,), upstream=(shape.T, shape.H))


def _make_glu(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    size = (shape.T, shape.I)
    return _tensors(shape, dtype, device, seed, gate=size, up=size, upstream=size)


def _make_rope(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    from automodel_kernels.reference import rope_cos_sin

    q, k = (1, shape.heads, shape.T, shape.D), (1, shape.kv, shape.T, shape.D)
    frequencies = 1e4 ** (-torch.arange(0, shape.D, 2) / shape.D)
    cos, sin = rope_cos_sin(torch.arange(shape.T)[None], frequencies)
    inputs = _tensors(shape, dtype, device, seed, q=q, k=k, upstream=q)
    return inputs | {"cos": cos.to(device, dtype), "sin": sin.to(device, dtype)}


def _make_lora(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    inputs = _tensors(
        shape, dtype, device, seed, x=(shape.T, shape.H), weight=(shape.I, shape.H), lora_a=(shape.rank, shape.H),
        lora_b=(shape.I, shape.rank), upstream=(shape.T, shape.I),
    )  # fmt: skip
    for name in ("weight", "lora_a"):
        inputs[name] *= shape.H**-0.5
    return inputs


def _work_lora(shape: Shape, size: int, backward: bool) -> Work:
    base = 2.0 * shape.T * shape.H * shape.I
    adapter = 2.0 * shape.T * shape.rank * (shape.H + shape.I)
    traffic = shape.T * (shape.H + shape.I) + shape.H * shape.I
    return (2 * base + 3 * adapter if backward else base + adapter), (2 if backward else 1) * traffic * size


def _elementwise(per_token: Callable[[Shape], int], forward: int, backward: int) -> Callable[[Shape, int, bool], Work]:
    """Work of an op that reads and writes so many numbers a token."""
    return lambda shape, size, both: (
        0.0,
        float(shape.T * per_token(shape) * size * (forward + (backward if both else 0))),
    )


CASES = {
    case.op: case
    for case in (
        Case("linear_ce", _make_linear_ce, ("hidden", "weight"), _work_linear_ce),
        Case("ce", _make_ce, ("logits",), _elementwise(lambda s: s.V, 1, 2)),
        Case("rms_norm", _make_norm, ("x", "weight"), _elementwise(lambda s: s.H, 2, 3)),
        Case("swiglu", _make_glu, ("gate", "up"), _elementwise(lambda s: s.I, 3, 5)),
        Case("rope", _make_rope, ("q", "k"), _elementwise(lambda s: (s.heads + s.kv) * s.D, 2, 2)),
        Case("lora", _make_lora, ("x", "lora_a", "lora_b"), _work_lora),
    )
}

"""Try a replacement on random numbers before it goes into a model: same inputs, same outputs, or it stays out."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from automodel_kernels.backend import use_backend
from automodel_kernels.patch.forwards import ROPE_NAME, Forward

_TOLERANCE = 1e-5


def behaves_alike(op: str, module: nn.Module, forward: Forward) -> str:
    """Return why the replacement must not be used, or an empty string. Runs in float32 on CPU, on a few numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), use_backend("torch"), torch.device("cpu"):
        if op == "rms_norm":
            return _norm_differs(module, forward, generator)
        if op == "glu":
            return _mlp_differs(module, forward, generator)
        return _rope_differs(module, forward, generator)


def _norm_differs(module: nn.Module, forward: Forward, generator: torch.Generator) -> str:
    size = module.weight.shape[0]
    weight, x = torch.randn(size, generator=generator), torch.randn(2, size, generator=generator)
    theirs = functional_call(module, {"weight": weight}, (x,))
    return _compare(theirs, functional_call(_with_forward(module, forward), {"weight": weight}, (x,)))


def _mlp_differs(module: nn.Module, forward: Forward, generator: torch.Generator) -> str:
    """The projections are replaced by the identity, so that the activation and the product alone are compared."""
    probe = copy.copy(module)
    fused = hasattr(module, "gate_up_proj")
    names = ("gate_up_proj", "down_proj") if fused else ("gate_proj", "up_proj", "down_proj")
    probe._modules = {**module._modules, **{name: nn.Identity() for name in names}}
    x = torch.randn(2, 8, generator=generator)
    return _compare(type(module).forward(probe, x), forward(probe, x))


def _rope_differs(module: nn.Module, forward: Any, generator: torch.Generator) -> str:
    theirs = inspect.unwrap(type(module).forward).__globals__[ROPE_NAME]
    ours = inspect.unwrap(forward).__globals__[ROPE_NAME]
    q, k = torch.randn(1, 2, 3, 8, generator=generator), torch.randn(1, 1, 3, 8, generator=generator)
    angles = torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
    args = (q, k, angles.cos(), angles.sin())
    reason = ""
    for one, other in zip(theirs(*args), ours(*args)):
        reason = reason or _compare(one, other)
    return reason


def _with_forward(module: nn.Module, forward: Forward) -> nn.Module:
    probe = copy.copy(module)
    object.__setattr__(probe, "forward", lambda *args: forward(probe, *args))
    return probe


def _compare(theirs: Any, ours: Any) -> str:
    if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor) or theirs.shape != ours.shape:
        return "its output has another form than the kernel's"
    difference = float((theirs - ours).norm() / theirs.norm().clamp(min=1e-12))
    if difference <= _TOLERANCE:
        return ""
    return f"its forward differs from the kernel's by {difference:.1e} on random numbers"

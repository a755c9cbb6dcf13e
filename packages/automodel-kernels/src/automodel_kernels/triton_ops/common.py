"""What every kernel shares: rounding to bfloat16 in the interpreter, and launching on the tensor's device."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes"))
"""Whether kernels run in the interpreter: there bfloat16 arithmetic is wrong and float32 to bfloat16 truncates."""


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """Cast float32 to ``dtype``, to nearest even; in the interpreter bfloat16 goes through its bits."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def factor(value):
    """A factor of ``tl.dot``: as it is on a device, so that tensor cores take it; float32 in the interpreter."""
    if INTERPRET:
        return value.to(tl.float32)
    return value


@triton.jit
def tanh(value):
    """``tanh`` without libdevice, which the interpreter lacks."""
    return 2.0 * tl.sigmoid(2.0 * value) - 1.0


def launch(kernel: Callable[..., Any], grid: tuple[int, ...], device: torch.device, *args: Any, **options: Any) -> None:
    """Run a kernel on the device of its tensors, whichever is current; an empty grid runs nothing."""
    if 0 in grid:
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*args, **options)  # type: ignore[index]


def rows_contiguous(x: Tensor) -> Tensor:
    """``x`` as ``[rows, columns]`` with unit stride along columns, copied only where it is not."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def num_warps_for(block: int) -> int:
    """Warps that give each thread at most 16 elements of a block."""
    return max(1, min(16, block // 512))

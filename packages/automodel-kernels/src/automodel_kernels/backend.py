"""Which implementation an op runs: Triton where the tensors and the driver allow it, PyTorch everywhere else.

The choice depends on the tensors at hand, never on a package being installed: triton imports happily on a machine
without a GPU. Each op says once per process what it chose and why; under ``strict`` a fallback is an error.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class KernelFallbackError(RuntimeError):
    """A kernel was required (``strict``) and cannot run on these tensors."""


@dataclass(frozen=True)
class Policy:
    """What the caller asked for."""

    backend: str = "auto"
    strict: bool = False


_policy = Policy()
_announced: dict[tuple[str, str], str] = {}


@contextlib.contextmanager
def use_backend(backend: str = "auto", *, strict: bool = False) -> Iterator[None]:
    """Choose the implementation of every op inside the ``with`` block (process-wide, not per thread).

    Args:
        backend: ``"auto"`` (by device), ``"torch"`` (the PyTorch twins) or ``"triton"`` (a fallback is an error).
        strict: make a fallback to PyTorch an error that names the reason.

    Raises: ValueError: an unknown backend.
    """
    global _policy
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r}: it must be one of {', '.join(BACKENDS)}. Use 'auto' to choose by device."
        )
    previous, _policy = _policy, Policy(backend, strict or backend == "triton")
    try:
        yield
    finally:
        _policy = previous


def choose_backend(op: str, *tensors: Tensor | None, strict: bool = False) -> str:
    """Return ``"triton"`` or ``"torch"`` for an op on these tensors (None entries are skipped).

    Raises: KernelFallbackError: a fallback would happen under ``strict``.
    """
    if _policy.backend == "torch":
        return "torch"
    reason = why_not_triton(*tensors)
    chosen = "torch" if reason else "triton"
    if reason and (strict or _policy.strict):
        raise KernelFallbackError(
            f"{op}: the Triton kernel cannot run here: {reason}. Kernels are required (strict). "
            "Remove the cause, or set strict=False to use the PyTorch twin."
        )
    _announce(op, chosen, reason)
    return chosen


def why_not_triton(*tensors: Tensor | None) -> str:
    """Return the one-line reason why Triton cannot take these tensors, or an empty string."""
    present = [tensor for tensor in tensors if tensor is not None]
    for tensor in present:
        if is_dtensor(tensor):
            return "a DTensor input (the PyTorch twin shards it op by op)"
        if tensor.is_floating_point() and tensor.dtype not in TRITON_DTYPES:
            return f"dtype {str(tensor.dtype).removeprefix('torch.')} (kernels take float32, bfloat16, float16)"
    if any(tensor.device.type == "meta" for tensor in present):
        return "a tensor on the meta device"
    devices = {tensor.device for tensor in present}
    if len(devices) > 1:
        return f"tensors on different devices ({', '.join(sorted(map(str, devices)))})"
    return triton_missing(devices.pop().type) if devices else "no tensor input"


def triton_missing(device_type: str) -> str:
    """Return why Triton has no driver for a device type, or an empty string."""
    return _triton_missing(device_type)


# What torch.compiler.assume_constant_result sets; calling it would import the compiler, and with it triton.
triton_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _triton_missing(device_type: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'automodel-kernels[triton]')"
    if device_type == "cuda":
        return _import_failure()
    if device_type != "cpu":
        return f"no kernels for device type {device_type!r}"
    if not interpreting():
        return "CPU tensors (set TRITON_INTERPRET=1 before starting Python to run the kernels in the interpreter)"
    return _import_failure()


@functools.cache
def interpreting() -> bool:
    """Whether Triton runs in its interpreter: read once, since kernels are built for one or the other at import."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return isinstance(tensor, DTensor)


def announced() -> dict[str, dict[str, str]]:
    """Return what each op has run on so far in this process: ``{op: {backend: reason}}``."""
    chosen: dict[str, dict[str, str]] = {}
    for (op, backend), reason in _announced.items():
        chosen.setdefault(op, {})[backend] = reason
    return chosen


def _announce(op: str, backend: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (op, backend) in _announced:
        return
    _announced[op, backend] = reason
    logger.info("%s runs on %s%s", op, backend, f": {reason}" if reason else "")


def _import_failure() -> str:
    try:
        importlib.import_module("triton.language")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"triton is installed but does not import ({type(error).__name__}: {error})"
    return ""

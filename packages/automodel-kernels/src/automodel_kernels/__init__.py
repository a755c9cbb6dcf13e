"""Triton, Transformer Engine and FP8 kernels for Hugging Face models, each with a plain PyTorch twin.

Importing this package imports neither torch's extensions, nor triton, transformer-engine, torchao or transformers:
every public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from automodel_kernels.__about__ import __version__

if TYPE_CHECKING:
    from automodel_kernels.backend import KernelFallbackError, use_backend
    from automodel_kernels.diagnosis import doctor
    from automodel_kernels.fp8 import FP8Config, apply_fp8
    from automodel_kernels.loss import TEParallelCrossEntropy, TritonCrossEntropy, TritonLinearCrossEntropy
    from automodel_kernels.patch import KernelReport, patch_model_with_kernel_optimizations, unpatch

_HOME = {
    "FP8Config": "automodel_kernels.fp8",
    "KernelFallbackError": "automodel_kernels.backend",
    "KernelReport": "automodel_kernels.patch",
    "TEParallelCrossEntropy": "automodel_kernels.loss",
    "TritonCrossEntropy": "automodel_kernels.loss",
    "TritonLinearCrossEntropy": "automodel_kernels.loss",
    "apply_fp8": "automodel_kernels.fp8",
    "doctor": "automodel_kernels.diagnosis",
    "patch_model_with_kernel_optimizations": "automodel_kernels.patch",
    "unpatch": "automodel_kernels.patch",
    "use_backend": "automodel_kernels.backend",
}

__all__ = [
    "FP8Config",
    "KernelFallbackError",
    "KernelReport",
    "TEParallelCrossEntropy",
    "TritonCrossEntropy",
    "TritonLinearCrossEntropy",
    "__version__",
    "apply_fp8",
    "doctor",
    "patch_model_with_kernel_optimizations",
    "unpatch",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'automodel_kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

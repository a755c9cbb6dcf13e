"""Put the ops into any Hugging Face model, on the instance, and take them out again."""

from automodel_kernels.patch.apply import patch_model_with_kernel_optimizations, unpatch
from automodel_kernels.patch.report import KernelReport

__all__ = ["KernelReport", "patch_model_with_kernel_optimizations", "unpatch"]

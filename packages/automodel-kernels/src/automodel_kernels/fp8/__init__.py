"""FP8: torchao's training recipes for trained weights, and a frozen base stored in FP8 under LoRA adapters."""

from automodel_kernels.fp8.config import FP8Config
from automodel_kernels.fp8.convert import apply_fp8
from automodel_kernels.fp8.frozen import dequantize_base, quantize_frozen_base
from automodel_kernels.fp8.report import FP8Report

__all__ = ["FP8Config", "FP8Report", "apply_fp8", "dequantize_base", "quantize_frozen_base"]

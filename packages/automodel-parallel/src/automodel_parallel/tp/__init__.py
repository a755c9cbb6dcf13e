"""Tensor and sequence parallelism for Hugging Face models, LoRA included."""

from automodel_parallel.tp.apply import STYLES, apply_tensor_parallel
from automodel_parallel.tp.plans import FAMILIES, resolve_plan

__all__ = ["FAMILIES", "STYLES", "apply_tensor_parallel", "resolve_plan"]

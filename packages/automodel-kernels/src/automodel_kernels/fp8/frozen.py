"""A frozen base in FP8 under LoRA: weights are quantised once, activations each step, adapters stay as they are."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from automodel_kernels.fp8.convert import ALIGN
from automodel_kernels.fp8.report import FP8Report
from automodel_kernels.fp8.scaled_linear import frozen_fp8_linear, quantize_rows
from automodel_kernels.ops.dropout import draw_seed, dropout_scale
from automodel_kernels.patch.apply import set_forward
from automodel_kernels.patch.lora import dropout_p, looks_like_lora

logger = logging.getLogger(__name__)


def quantize_frozen_base(model: nn.Module, *, filter_fqns: tuple[str, ...] = ("lm_head",)) -> FP8Report:
    """Store the frozen weights of LoRA layers in FP8 (e4m3, one scale a row), in place, after the weights are loaded.

    The products run through ``torch._scaled_mm``, on CUDA and on CPU; gradients flow to the input and to the adapters.
    The weight keeps its name and takes a byte a number; its scales are a buffer ``weight_scale`` beside it.

    Args:
        filter_fqns: parts of module names that stay in high precision.

    Returns: the coverage report.
    Raises: ValueError: no LoRA layer fits.
    """
    report = FP8Report("frozen base, rowwise e4m3")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, module in model.named_modules():
        if not looks_like_lora(module):
            continue
        reason = _unfit(name, module, filter_fqns)
        if reason:
            report.skipped.append((name, reason))
        else:
            _quantize(module)
            report.converted.append(name)
    if not report.converted:
        reasons = "; ".join(sorted({reason for _, reason in report.skipped})) or "the model has no LoRA layer"
        raise ValueError(f"no frozen base was put into fp8: {reasons}. Apply LoRA first, or leave this step out.")
    assert trainable == [name for name, p in model.named_parameters() if p.requires_grad]
    for line in str(report).splitlines():
        logger.info(line)
    return report


def dequantize_base(model: nn.Module) -> int:
    """Undo :func:`quantize_frozen_base` up to the rounding; returns the number of layers."""
    number = 0
    for module in model.modules():
        if "weight_scale" in module._buffers and isinstance(module, nn.Linear):
            scale = module._buffers.pop("weight_scale")
            dtype = module.lora_A.weight.dtype
            wide = module.weight.detach().float() * scale
            module.weight = nn.Parameter(wide.to(dtype), requires_grad=False)
            vars(module).pop("forward", None)
            number += 1
    return number


def _unfit(name: str, module: nn.Module, filter_fqns: tuple[str, ...]) -> str:
    matched = [part for part in filter_fqns if part in name]
    if matched:
        return f"filtered by {', '.join(matched)}"
    weight = module.weight
    if getattr(module, "lora_magnitude_vector", None) is not None:
        return "it is a DoRA layer"
    if weight.requires_grad:
        return "its base weight is trained"
    if not isinstance(weight, nn.Parameter) or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its base weight is {weight.dtype}"
    if weight.shape[0] % ALIGN or weight.shape[1] % ALIGN:
        return f"a dim is not a multiple of {ALIGN}"
    if weight.device.type == "meta":
        return "its weight is on meta (load the weights first)"
    if "forward" in vars(module):
        return "its forward was replaced on the instance (leave 'lora' out of the kernel ops)"
    return ""


def _quantize(module: Any) -> None:
    quantised, scale = quantize_rows(module.weight.detach())
    module.weight = nn.Parameter(quantised, requires_grad=False)
    module.register_buffer("weight_scale", scale, persistent=False)
    set_forward(module, _forward)


def _forward(self: Any, x: Tensor) -> Tensor:
    y = frozen_fp8_linear(x, self.weight, self.weight_scale)
    if getattr(self, "merged", False):
        raise RuntimeError("a LoRA layer on an fp8 base is marked merged: fp8 cannot hold the sum. Unmerge it.")
    p = dropout_p(self) if self.training else 0.0
    mask = dropout_scale(x, p, draw_seed() if p else None)
    dropped = (x if mask is None else x * mask).to(self.lora_A.weight.dtype)
    adapter = self.lora_B(self.lora_A(dropped))
    y = y + (float(self.scaling) * adapter).to(y.dtype)
    return y if self.bias is None else y + self.bias

"""Swap trained linear layers for torchao's FP8 ones: all that are asked for, or an error."""

import importlib.util
import logging
from typing import Any

import torch
from torch import nn

from automodel_kernels.fp8.availability import fp8_missing
from automodel_kernels.fp8.config import FP8Config
from automodel_kernels.fp8.report import FP8Report

logger = logging.getLogger(__name__)
ALIGN = 16
"""FP8 matrix products want every dim to be a multiple of this."""


def apply_fp8(model: nn.Module, *, config: FP8Config) -> FP8Report:
    """Convert a model's linear layers to FP8 training, in place, before it is sharded.

    LoRA layers, their base and their adapters stay as they are, since torchao would replace a LoRA layer by a plain one
    and drop its adapter: see :func:`automodel_kernels.fp8.quantize_frozen_base` for those. Parameter names and what is
    trainable are the same before and after; this is asserted.

    Returns: the coverage report.
    Raises: ImportError: no torchao. RuntimeError: no FP8 hardware and no ``emulate``. ValueError: nothing to convert,
        or a filter that matches no layer.
    """
    report = FP8Report(config.recipe_name if config.enabled else "off")
    if not config.enabled:
        return report
    _check_environment(config)
    _plan(model, config, report)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    _convert(model, config, set(report.converted))
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    assert after == trainable, f"fp8 changed parameters: {sorted(set(after.items()) ^ set(trainable.items()))[:4]}"
    for line in str(report).splitlines():
        logger.info(line)
    return report


def precompute_scales(model: nn.Module) -> None:
    """Compute all FP8 weight scales in one all-reduce; call it after ``optimizer.step()`` under FSDP2."""
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    precompute_float8_dynamic_scale_for_fsdp(model)


def _check_environment(config: FP8Config) -> None:
    if importlib.util.find_spec("torchao") is None:
        raise ImportError("fp8 needs torchao, which is not installed: pip install 'automodel-kernels[ao]'.")
    missing = fp8_missing()
    if missing and not config.emulate:
        raise RuntimeError(f"fp8 cannot run here: {missing}. Set fp8.emulate=True, or remove the fp8 section.")


def _plan(model: nn.Module, config: FP8Config, report: FP8Report) -> None:
    unused = set(config.filter_fqns)
    lora: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if hasattr(module, "lora_A") and hasattr(module, "lora_B"):
            lora.append(f"{name}.")
        matched = {part for part in config.filter_fqns if part in name}
        unused -= matched
        reason = _reason(name, module, matched, lora)
        if reason:
            report.skipped.append((name, reason))
        else:
            report.converted.append(name)
    _check_plan(report, unused - {"lm_head"})  # the default names the usual head, which a headless model lacks


def _reason(name: str, module: nn.Linear, matched: set[str], lora: list[str]) -> str:
    if any(f"{name}.".startswith(prefix) for prefix in lora):
        return "part of a LoRA layer"
    if matched:
        return f"filtered by {', '.join(sorted(matched))}"
    if type(module) is not nn.Linear:
        return f"a subclass of nn.Linear ({type(module).__name__})"
    if module.in_features % ALIGN or module.out_features % ALIGN:
        return f"a dim is not a multiple of {ALIGN}"
    return ""


def _check_plan(report: FP8Report, unused: set[str]) -> None:
    if unused:
        raise ValueError(
            f"fp8.filter_fqns holds {', '.join(sorted(unused))}, which matches no linear layer. Correct or remove it."
        )
    if not report.converted:
        reasons = sorted({reason for _, reason in report.skipped})
        raise ValueError(
            f"fp8 would convert none of {len(report.skipped)} linear layers ({'; '.join(reasons) or 'none exist'}). "
            "Loosen filter_fqns, use fp8_frozen_base for LoRA, or remove the fp8 section."
        )


def _convert(model: nn.Module, config: FP8Config, names: set[str]) -> None:
    import dataclasses

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    options: dict[str, Any] = {"emulate": config.emulate}
    if config.recipe_name == "tensorwise":
        options["enable_fsdp_float8_all_gather"] = config.enable_fsdp_float8_all_gather
    recipe = dataclasses.replace(Float8LinearConfig.from_recipe_name(config.recipe_name), **options)
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    convert_to_float8_training(model, config=recipe, module_filter_fn=lambda module, name: name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])

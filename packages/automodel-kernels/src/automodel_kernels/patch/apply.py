"""Apply the table of rules to one model instance."""

import logging
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from automodel_kernels.backend import KernelFallbackError, triton_missing
from automodel_kernels.patch.check import behaves_alike
from automodel_kernels.patch.forwards import gated_mlp_unfit
from automodel_kernels.patch.head import head_forward, head_unfit
from automodel_kernels.patch.lora import looks_like_lora, lora_forward, lora_unfit
from automodel_kernels.patch.lora_mlp import lora_mlp_forward, lora_mlp_unfit
from automodel_kernels.patch.report import MARK, Change, KernelReport, Skip
from automodel_kernels.patch.rules import DEFAULT_OPS, GATED_MLPS, OPS, PLAIN_HEADS, RULES, Rule

logger = logging.getLogger(__name__)


def patch_model_with_kernel_optimizations(
    model: nn.Module, *, ops: Iterable[str] | str = DEFAULT_OPS, strict: bool = False
) -> KernelReport:
    """Replace the forwards of known modules by ones that call the ops; weights, names and classes stay.

    Only this instance changes: other models, the classes and transformers itself are left alone. Before a class is
    touched, its forward and the replacement are compared on random numbers.

    Args:
        model: any Hugging Face model, on any device, on meta too. Apply LoRA first and wrappers (DDP, FSDP) afterwards.
        ops: some of ``glu``, ``linear_cross_entropy``, ``lora``, ``lora_mlp``, ``rms_norm``, ``rope``.
            ``linear_cross_entropy`` makes ``model(..., labels=...)`` return a loss without logits; ``lora_mlp`` takes a
            whole MLP with LoRA on its three projections, without calling these as modules.
        strict: an op that fits no module, or would run on its PyTorch twin, is an error; and so at run time.

    Returns: the report; ``report.unpatch()`` or ``unpatch(model)`` takes everything out again.
    Raises: ValueError: an unknown op, a model patched already, or nothing to patch. KernelFallbackError: see strict.
    """
    wanted = _wanted(ops)
    if getattr(model, MARK, None) is not None:
        raise ValueError("this model is patched already: patch it once. Call unpatch(model) first.")
    report = KernelReport(fallback=triton_missing(_device_type(model)))
    if strict and report.fallback:
        raise KernelFallbackError(
            f"kernels are required (strict) and cannot run: {report.fallback}. Remove the cause, or set strict=False."
        )
    backend = "torch" if report.fallback else "triton"
    if "lora_mlp" in wanted:
        _apply_lora_mlp(report, model, strict, backend)
    _apply_rules(report, model, [rule for rule in RULES if rule.op in wanted], strict, backend)
    if "lora" in wanted:
        _apply_lora(report, model, strict, backend)
    if "linear_cross_entropy" in wanted:
        _apply_head(report, model, strict, backend)
    _finish(report, model, wanted, strict)
    return report


def unpatch(model: nn.Module) -> None:
    """Undo :func:`patch_model_with_kernel_optimizations` on this model.

    Raises: ValueError: the model is not patched.
    """
    report = getattr(model, MARK, None)
    if report is None:
        raise ValueError("this model is not patched: there is nothing to undo.")
    report.unpatch()


def _wanted(ops: Iterable[str] | str) -> tuple[str, ...]:
    wanted = (ops,) if isinstance(ops, str) else tuple(ops)
    unknown = sorted(set(wanted) - set(OPS))
    if unknown or not wanted:
        raise ValueError(
            f"ops={list(wanted)}: they must be among {', '.join(OPS)}. Remove {', '.join(unknown) or 'nothing'}."
        )
    return wanted


def _apply_rules(report: KernelReport, model: nn.Module, rules: list[Rule], strict: bool, backend: str) -> None:
    verdicts: dict[tuple[str, type, str], str] = {}
    taken = {id(module) for module in report.patched}
    for name, module in model.named_modules():
        for rule in rules:
            if type(module).__name__ in rule.classes and id(module) not in taken:
                _apply_rule(report, rule, name, module, strict, backend, verdicts)


def _apply_lora(report: KernelReport, model: nn.Module, strict: bool, backend: str) -> None:
    inside = tuple(f"{change.name}." for change in report.changes if change.op == "lora_mlp")
    for name, module in model.named_modules():
        if looks_like_lora(module) and not (inside and name.startswith(inside)):
            reason = lora_unfit(module)
            _change(report, "lora", name, module, partial(lora_forward, module, strict), reason, backend)


def _apply_lora_mlp(report: KernelReport, model: nn.Module, strict: bool, backend: str) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ in GATED_MLPS:
            reason = gated_mlp_unfit(module) or lora_mlp_unfit(module)
            _change(report, "lora_mlp", name, module, partial(lora_mlp_forward, module, strict), reason, backend)


def _apply_rule(
    report: KernelReport,
    rule: Rule,
    name: str,
    module: nn.Module,
    strict: bool,
    backend: str,
    verdicts: dict[tuple[str, type, str], str],
) -> None:
    reason = rule.unfit(module)
    if not reason:
        key = (rule.op, type(module), repr(getattr(module, "act_fn", None)))
        if key not in verdicts:
            verdicts[key] = behaves_alike(rule.op, module, rule.build(module, False))
        reason = verdicts[key]
    _change(report, rule.op, name, module, lambda: rule.build(module, strict), reason, backend)


def _change(
    report: KernelReport,
    op: str,
    name: str,
    module: nn.Module,
    build: Callable[[], Callable[..., object]],
    reason: str,
    backend: str,
) -> None:
    cls = type(module).__name__
    if not reason and "forward" in vars(module):
        reason = "its forward was replaced on the instance by someone else"
    if reason:
        report.skips.append(Skip(name, cls, op, reason))
        return
    set_forward(module, build())
    report.patched.append(module)
    report.changes.append(Change(name, cls, op, backend))


def set_forward(module: nn.Module, forward: Any) -> None:
    """Bind a function as the forward of this instance alone; ``copy.deepcopy`` rebinds it to the copy."""
    module.forward = types.MethodType(forward, module)


def _apply_head(report: KernelReport, model: nn.Module, strict: bool, backend: str) -> None:
    cls = type(model).__name__
    reason = head_unfit(model, PLAIN_HEADS)
    if reason:
        report.skips.append(Skip("", cls, "linear_cross_entropy", reason))
        return
    set_forward(model, head_forward(strict))
    report.patched.append(model)
    report.changes.append(Change("lm_head", cls, "linear_cross_entropy", backend))


def _finish(report: KernelReport, model: nn.Module, wanted: tuple[str, ...], strict: bool) -> None:
    unmatched = [op for op in wanted if op not in report.counts()]
    if not report.changes or (strict and unmatched):
        report.unpatch()
        raise ValueError(
            f"no module of {type(model).__name__} can take {', '.join(unmatched)} ({report}). "
            f"Take {'it' if len(unmatched) == 1 else 'them'} out of ops, or set strict=False where others matched."
        )
    setattr(model, MARK, report)
    report.patched.append(model)
    for line in str(report).splitlines():
        logger.info("kernels: %s", line)


def _device_type(model: nn.Module) -> str:
    """The device the model will run on: a model on meta is taken to go to the accelerator, if there is one."""
    import torch

    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device.type
    if device == "meta":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device

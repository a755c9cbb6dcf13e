"""Swap linear layers and RMSNorms for Transformer Engine's, keeping parameters, names and what is trainable."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from automodel_kernels.patch.rules import GEMMA_NORMS, LLAMA_NORMS
from automodel_kernels.te.availability import require_te

logger = logging.getLogger(__name__)
_EXTRA = "_extra_state"


@dataclass
class TEReport:
    """Names of converted modules, and ``(name, reason)`` of the others."""

    converted: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"transformer-engine: {len(self.converted)} modules converted, {len(self.skipped)} left alone"


def convert_to_te(
    model: nn.Module, *, linear: bool = True, norm: bool = True, filter_fqns: tuple[str, ...] = ("lm_head",)
) -> TEReport:
    """Replace ``nn.Linear`` and the known RMSNorm classes in place; the same Parameter objects move over.

    LoRA layers with their children stay as they are. The state dict keeps its keys: Transformer Engine's extra state is
    taken out on saving and not missed on loading.

    Raises: TEUnavailableError: with the reason. ValueError: nothing to convert.
    """
    te = require_te()
    report = TEReport()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    lora = [f"{name}." for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for name, module in list(model.named_modules()):
        wanted = (linear and isinstance(module, nn.Linear)) or (norm and type(module).__name__ in _norms())
        if not wanted:
            continue
        reason = _unfit(name, module, filter_fqns, lora)
        if reason:
            report.skipped.append((name, reason))
            continue
        build = _te_linear if isinstance(module, nn.Linear) else _te_norm
        model.set_submodule(name, _adopt(build(te, module), module))
        report.converted.append(name)
    if not report.converted:
        reasons = "; ".join(sorted({reason for _, reason in report.skipped})) or "the model has none"
        raise ValueError(
            f"no layer can be converted to Transformer Engine: {reasons}. Loosen the filters, or leave it out."
        )
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}
    logger.info("%s", report)
    return report


def _unfit(name: str, module: nn.Module, filter_fqns: tuple[str, ...], lora: list[str]) -> str:
    if not name:
        return "it is the root module, which cannot be replaced in place"
    matched = [part for part in filter_fqns if part in name]
    if matched:
        return f"filtered by {', '.join(matched)}"
    if any(f"{name}.".startswith(prefix) for prefix in lora):
        return "part of a LoRA layer"
    if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
        return f"a subclass of nn.Linear ({type(module).__name__})"
    return "its forward was replaced on the instance" if "forward" in vars(module) else ""


def _te_linear(te: Any, module: nn.Linear) -> nn.Module:
    return te.Linear(
        in_features=module.in_features,
        out_features=module.out_features,
        bias=module.bias is not None,
        params_dtype=module.weight.dtype,
        device=module.weight.device,
    )


def _te_norm(te: Any, module: Any) -> nn.Module:
    return te.RMSNorm(
        normalized_shape=module.weight.shape[0],
        eps=getattr(module, "variance_epsilon", getattr(module, "eps", None)),
        device=module.weight.device,
        dtype=module.weight.dtype,
        zero_centered_gamma=type(module).__name__ in GEMMA_NORMS,
    )


def _adopt(new: nn.Module, old: nn.Module) -> nn.Module:
    """Move the parameters over, and keep the extra state out of checkpoints."""
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    new.train(old.training)
    new.register_state_dict_post_hook(_drop_extra_state)
    new.register_load_state_dict_post_hook(_forget_extra_state)
    return new


def _drop_extra_state(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix) and key.endswith(_EXTRA)]:
        del state_dict[key]


def _forget_extra_state(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(_EXTRA)]


def _norms() -> tuple[str, ...]:
    return (*LLAMA_NORMS, *GEMMA_NORMS)

"""Add adapters to a model in place, and say what was done."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from automodel_core.peft.base_weight import keep_codes_unpacked, num_elements
from automodel_core.peft.config import PeftConfig
from automodel_core.peft.init import init_lora
from automodel_core.peft.lora import LoRALayer, patch_linear_module
from automodel_core.peft.matching import ModuleMatcher, classifier_heads, linear_modules, matches, summary
from automodel_core.peft.misread import refuse_what_peft_misreads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraReport:
    """What ``apply_lora`` changed."""

    modules: tuple[str, ...]
    """Names of the layers, and of fused expert parameters, that carry an adapter."""
    modules_to_save: tuple[str, ...]
    """Names of the modules that train in full."""
    num_trainable: int
    num_parameters: int
    unused_excludes: tuple[str, ...] = ()
    """Exclude patterns that matched no module."""
    token_rows: tuple[str, ...] = ()
    """Names of the modules of which some rows train."""

    def __str__(self) -> str:
        share = 100.0 * self.num_trainable / max(self.num_parameters, 1)
        saved = f", in full: {', '.join(self.modules_to_save)}" if self.modules_to_save else ""
        saved += f", token rows of: {', '.join(self.token_rows)}" if self.token_rows else ""
        return (
            f"LoRA on {len(self.modules)} modules ({summary(self.modules)}){saved}; "
            f"{self.num_trainable:,} of {self.num_parameters:,} parameters train ({share:.2f} %)"
        )


def apply_lora(
    model: nn.Module, config: Any, *, seed: int = 0, triton_rule: Callable[[nn.Module], Any] | None = None
) -> LoraReport:
    """Freeze the model and add adapters to the layers that the config names. No base parameter is renamed.

    Args:
        model: any model; on the meta device the adapters stay uninitialised until ``init_lora``.
        config: a ``PeftConfig``, or any config of the ``peft`` library, which then does the work itself.
        seed: for the adapters' initial values.
        triton_rule: what ``use_triton`` asks for: a function that edits the model's LoRA layers, from
            automodel-kernels.

    Raises: ValueError: a pattern matches nothing, an adapter is there already, ``use_triton`` without a rule, or
            layers whose adapters peft would load elsewhere.
    """
    keep_codes_unpacked(model)
    if not isinstance(config, PeftConfig):
        from automodel_core.peft.external import apply_external

        return apply_external(model, config)
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise ValueError(
            "the model has LoRA layers already: one adapter is trained at a time. Merge or unload it first."
        )
    if config.use_triton and triton_rule is None:
        raise ValueError(
            "use_triton=True in automodel-core alone: its kernels are in automodel-kernels. Run "
            "`pip install automodel-kernels` and hand their rule in as triton_rule, or set use_triton: false."
        )
    matcher = ModuleMatcher.from_config(config)
    targets = {} if config.target_parameters and not config.target_modules else matcher.select(model)
    unused = matcher.unused_excludes(model)
    refuse_what_peft_misreads(model, targets)
    model.requires_grad_(False)
    for linear in targets.values():
        patch_linear_module(linear, config)
    names = [*targets, *_apply_to_experts(model, config)]
    saved = _train_in_full(model, config)
    rows = _train_token_rows(model, config, saved)
    if not any(p.device.type == "meta" for p in model.parameters()):
        init_lora(model, seed)
    if triton_rule is not None and config.use_triton:
        triton_rule(model)
    if unused:
        logger.warning("exclude_modules %s match no module; nothing was excluded by them.", list(unused))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return LoraReport(tuple(names), saved, trainable, sum(map(num_elements, model.parameters())), unused, rows)


def _apply_to_experts(model: nn.Module, config: PeftConfig) -> list[str]:
    if not config.target_parameters:
        return []
    from automodel_core.peft.experts import apply_to_experts

    return apply_to_experts(model, config)


def _train_token_rows(model: nn.Module, config: PeftConfig, saved: tuple[str, ...]) -> tuple[str, ...]:
    if not config.trainable_token_indices:
        return ()
    from automodel_core.peft.token_rows import apply_token_rows

    names = apply_token_rows(model, config.trainable_token_indices)
    both = [name for name in names if any(name == other or name.startswith(f"{other}.") for other in saved)]
    if both:
        raise ValueError(
            f"{both[0]} is in modules_to_save and in trainable_token_indices: all of its rows train, or some. "
            "Remove it from one of them."
        )
    return names


def _train_in_full(model: nn.Module, config: PeftConfig) -> tuple[str, ...]:
    """Unfreeze ``modules_to_save``, and a sequence classifier's new head."""
    patterns = [*config.modules_to_save, *classifier_heads(model)]
    saved: list[str] = []
    for pattern in patterns:
        found = [name for name, _ in model.named_modules() if name and matches(pattern, name)]
        if not found:
            raise ValueError(
                f"modules_to_save pattern {pattern!r} matches no module: candidates end in "
                f"{summary(name for name, _ in linear_modules(model))}, or name an embedding. Correct the pattern."
            )
        saved += [name for name in found if name not in saved]
    for name in saved:
        module = model.get_submodule(name)
        if isinstance(module, LoRALayer):
            raise ValueError(
                f"{name} is in modules_to_save and has an adapter: choose one. Exclude it from the targets."
            )
        module.requires_grad_(True)
    _check_tied(model, saved)
    return tuple(saved)


def _check_tied(model: nn.Module, saved: list[str]) -> None:
    """A tied weight that trains under one of its names only would be saved as half of what it is."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name in saved:
        for target, source in tied.items():
            pair = {target.rsplit(".", 1)[0], source.rsplit(".", 1)[0]}
            if name in pair and not pair <= set(saved):
                other = (pair - {name}).pop()
                raise ValueError(
                    f"modules_to_save names {name!r}, whose weight is tied to {other!r}: both change. "
                    f"Name both, or set tie_word_embeddings: false."
                )

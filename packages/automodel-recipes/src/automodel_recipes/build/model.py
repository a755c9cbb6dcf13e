"""The model side: base weights, freezing, LoRA, kernels, and the reports of what each edit did."""

from dataclasses import dataclass, field
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_recipes.build.call import build, plain
from automodel_recipes.build.training import apply_mixed_precision


@dataclass
class ModelBuild:
    """A model that is ready to be parallelised, and what was done to it."""

    model: torch.nn.Module
    peft: Any = None
    qat: Any = None
    reports: list[Any] = field(default_factory=list)

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def num_trainable(self) -> int:
        """Parameters that the optimizer will change."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def build_model(config: ConfigNode, *, seed: int, tokenizer: Any = None) -> ModelBuild:
    """Load or initialise the model of the ``model`` section and apply the edits that the YAML asks for, in order."""
    torch.manual_seed(seed)
    built = ModelBuild(build(config.model, tokenizer=tokenizer))
    _freeze(built, config)
    _apply_qat(built, config)
    _apply_lora(built, config, seed)
    _prepare_vision(built)
    _apply_kernels(built, config)
    _apply_transforms(built, config)
    apply_mixed_precision(config, built.model)
    return built


def _freeze(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("freeze_config")
    if section is not None:
        from automodel_core.models import apply_freezing

        built.reports.append(apply_freezing(built.model, **plain(section)))


def _apply_qat(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("qat")
    if section is None:
        return
    from automodel_core.quantization import apply_qat

    built.qat = apply_qat(built.model, **plain(section))
    built.reports.append(built.qat)


def _apply_lora(built: ModelBuild, config: ConfigNode, seed: int) -> None:
    section = config.get("peft")
    if section is None:
        return
    from automodel_core.peft import apply_lora, init_lora

    built.peft = section.instantiate()
    built.reports.append(apply_lora(built.model, built.peft))
    init_lora(built.model, seed)


def _prepare_vision(built: ModelBuild) -> None:
    if getattr(getattr(built.model, "config", None), "vision_config", None) is None:
        return
    from automodel_recipes.vlm.repairs import see_whole_images
    from automodel_recipes.vlm.unreached import freeze_unreached

    for report in (see_whole_images(built.model), freeze_unreached(built.model)):
        if report is not None:
            built.reports.append(report)


def _apply_kernels(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("kernels")
    if section is None:
        return
    from automodel_kernels import patch_model_with_kernel_optimizations

    built.reports.append(patch_model_with_kernel_optimizations(built.model, **plain(section)))


def _apply_transforms(built: ModelBuild, config: ConfigNode) -> None:
    for section in config.get("transforms") or []:
        built.reports.append(build(section, model=built.model))

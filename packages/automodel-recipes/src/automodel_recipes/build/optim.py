"""Loss, optimizer and learning-rate schedule."""

from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_core.optim import OptimizerParamScheduler, build_optimizer
from automodel_recipes.build.call import build


def build_loss(config: ConfigNode) -> Any:
    """The loss of the ``loss_fn`` section; masked cross-entropy where there is none."""
    section = config.get("loss_fn")
    if section is None:
        from automodel_core.loss import MaskedCrossEntropy

        return MaskedCrossEntropy()
    return build(section)


def build_recipe_optimizer(config: ConfigNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters, with the parameter groups that the YAML asks for."""
    section = config.get("optimizer")
    if section is None:
        return build_optimizer(model, torch.optim.AdamW, lr=1e-5)
    keys = {name: value for name, value in section.to_dict().items() if name != "_target_"}
    return build_optimizer(model, section.target(), **keys)


def build_lr_schedule(
    config: ConfigNode, optimizer: torch.optim.Optimizer, total_steps: int
) -> OptimizerParamScheduler:
    """The schedule of the ``lr_scheduler`` section in optimizer steps; constant where there is none."""
    lr = max(float(group["lr"]) for group in optimizer.param_groups)
    section = config.get("lr_scheduler")
    if section is None:
        keys: dict[str, Any] = {"lr_decay_style": "constant", "min_lr": lr, "init_lr": lr, "lr_warmup_steps": 0}
    else:
        keys = {
            "lr_decay_style": "cosine",
            "init_lr": 0.1 * lr,
            "min_lr": 0.01 * lr,
            "lr_warmup_steps": min(1000, total_steps // 10),
            **section.to_dict(),
        }
    keys.setdefault("lr_decay_steps", max(total_steps, 1))
    return OptimizerParamScheduler(optimizer, max_lr=keys.pop("max_lr", lr), **keys)

"""What a model does with its output head: which tensors it multiplies by, and what happens to the logits after it."""

from typing import Any

import torch
from torch import nn

from automodel_core.loss.linear_ce import HeadTransform

# model_type -> how the config's `logits_scaling` acts on logits where it does not divide them.
_MULTIPLIES_BY_LOGITS_SCALING = {"hyperclovax"}
_SCALES_HIDDEN_STATES = {"minicpm3"}
# Composed models whose own forward leaves out the `logit_scale` of the language model that they hold.
_LEAVES_OUT_LOGIT_SCALE = {"aya_vision", "cohere2_vision"}

# Far apart and large, so that a cap or a scale that the table does not know shows in the result.
_PROBE = (50.0, -20.0)


def head_transform(config: Any) -> HeadTransform:
    """What transformers' model of this config does to its logits after the head, read from the config."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0
    if config.model_type in _LEAVES_OUT_LOGIT_SCALE:
        scale = 1.0
    scaling = getattr(text, "logits_scaling", None)
    if scaling and text.model_type not in _SCALES_HIDDEN_STATES:
        scale = scaling if text.model_type in _MULTIPLIES_BY_LOGITS_SCALING else 1.0 / scaling
    cap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return HeadTransform(float(scale), float(cap or 0.0))


def head_parameters(head: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of an output head; with a LoRA on it, the weight it stands for (``[V, H]`` is formed)."""
    effective = getattr(head, "effective_weight", None)
    weight = effective() if effective is not None else head.weight
    return weight, getattr(head, "bias", None)


def probe_logits(loss: torch.Tensor) -> torch.Tensor:
    """``[1, 1, 3]``: the loss, so that the graph passes through the head, and two constants that show what follows."""
    return torch.cat([loss.reshape(1), loss.new_tensor(_PROBE)]).reshape(1, 1, -1)


def check_head_transform(model: nn.Module, logits: torch.Tensor, transform: HeadTransform) -> None:
    """Compare what the model did to the probe with what the loss assumed; costs a host sync, once per model.

    Raises: ValueError: they differ, so the loss would not be the model's.
    """
    got = logits.detach().float().reshape(-1)[-2:].cpu()
    expected = torch.tensor(_PROBE) * transform.scale
    if transform.softcap:
        expected = transform.softcap * torch.tanh(expected / transform.softcap)
    if not torch.allclose(got, expected, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} turns head outputs {list(_PROBE)} into {got.tolist()}, and the loss on hidden "
            f"states assumes {expected.tolist()}: this model does something else to its logits. Use masked_ce."
        )

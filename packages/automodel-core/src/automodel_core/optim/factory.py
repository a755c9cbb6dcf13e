"""Build any torch optimizer over a model's trainable parameters."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from automodel_core.optim.param_groups import ParamGroup, build_param_groups

logger = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module,
    optimizer_cls: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    *,
    lr: float = 1e-5,
    weight_decay: float | None = None,
    decay_norms_and_biases: bool = False,
    param_group_overrides: Sequence[Mapping[str, Any]] = (),
    lora_plus_ratio: float | None = None,
    **optimizer_kwargs: Any,
) -> torch.optim.Optimizer:
    """An optimizer whose groups ``build_param_groups`` made.

    Args:
        model: the model to train, parallelised already.
        optimizer_cls: a torch optimizer class or a factory with its signature.
        lr, decay_norms_and_biases, param_group_overrides, lora_plus_ratio: see ``build_param_groups``.
        weight_decay: None takes the optimizer's own default.
        optimizer_kwargs: ``betas``, ``eps``, ``fused`` and the like, as the optimizer takes them. ``foreach`` is
            turned off where parameters live on different meshes, which multi-tensor kernels refuse; elsewhere torch's
            Adam, AdamW and SGD are ``fused`` on CUDA, where they can leave out a step without a host sync.

    Raises: ValueError: see ``build_param_groups``; TypeError: a key that the optimizer does not take.
    """
    known = inspect.signature(optimizer_cls).parameters
    _check_keys(optimizer_cls, optimizer_kwargs, known)
    if weight_decay is None:
        default = known["weight_decay"].default if "weight_decay" in known else 0.0
        weight_decay = 0.0 if default is inspect.Parameter.empty else float(default)
    groups = build_param_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        decay_norms_and_biases=decay_norms_and_biases,
        param_group_overrides=param_group_overrides,
        lora_plus_ratio=lora_plus_ratio,
    )
    if "weight_decay" not in known and weight_decay:
        raise TypeError(f"{optimizer_cls.__name__} takes no weight_decay={weight_decay}: remove it from the optimizer.")
    if "foreach" in known and _on_different_meshes(groups):
        optimizer_kwargs.setdefault("foreach", False)
    elif _can_be_fused(optimizer_cls, groups) and not optimizer_kwargs.keys() & {"foreach", "capturable"}:
        optimizer_kwargs.setdefault("fused", True)
    _warn_of_low_precision(optimizer_cls, groups)
    return optimizer_cls(groups, lr=lr, **optimizer_kwargs)


def _check_keys(optimizer_cls: Callable[..., Any], given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    unknown = sorted(set(given) - set(known))
    if unknown:
        allowed = ", ".join(name for name in known if name not in ("self", "params"))
        raise TypeError(
            f"{optimizer_cls.__name__} takes no {', '.join(unknown)}: allowed are {allowed}. Correct the key."
        )


def _on_different_meshes(groups: Sequence[ParamGroup]) -> bool:
    meshes = {p.device_mesh if isinstance(p, DTensor) else None for group in groups for p in group["params"]}
    has_tensor_parallel = any(mesh is not None and "tp" in (mesh.mesh_dim_names or ()) for mesh in meshes)
    return len(meshes) > 1 or has_tensor_parallel


def _can_be_fused(optimizer_cls: Any, groups: Sequence[ParamGroup]) -> bool:
    return optimizer_cls in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) and all(
        p.device.type == "cuda" for group in groups for p in group["params"]
    )


def _warn_of_low_precision(optimizer_cls: Any, groups: Sequence[ParamGroup]) -> None:
    if optimizer_cls not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        return
    low = {p.dtype for group in groups for p in group["params"]} & {torch.bfloat16, torch.float16}
    if low:
        logger.warning(
            "%s on %s parameters: updates smaller than half a unit of their last place are lost, so training stalls at "
            "usual learning rates. Load with dtype=float32 and compute in bfloat16 (mp_policy or autocast), set "
            "lora_dtype: float32, or take an optimizer with stochastic rounding such as "
            "torchao.optim._AdamW(bf16_stochastic_round=True).",
            optimizer_cls.__name__,
            ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low)),
        )

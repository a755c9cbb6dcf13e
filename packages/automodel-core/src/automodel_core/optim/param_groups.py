"""Parameter groups: who decays, and whose learning rate differs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

ParamGroup = dict[str, Any]


def build_param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay_norms_and_biases: bool = False,
    param_group_overrides: Sequence[Mapping[str, Any]] = (),
    lora_plus_ratio: float | None = None,
) -> list[ParamGroup]:
    """Group the trainable parameters by learning rate and weight decay.

    Args:
        model: parameters without ``requires_grad`` are left out.
        lr: base learning rate.
        weight_decay: base weight decay.
        decay_norms_and_biases: also decay parameters of fewer than two dimensions.
        param_group_overrides: ``{pattern, lr_mult, wd_mult}`` each; ``pattern`` is a wildcard on the whole parameter
            name. Of several that match, the last wins.
        lora_plus_ratio: learning rate of every ``lora_B`` over that of ``lora_A`` (LoRA+, arXiv:2402.12354).

    Returns: groups with ``params``, ``lr``, ``weight_decay``, and ``lr_mult``, ``wd_mult`` for a schedule to keep.
    Raises: ValueError: nothing trains, a pattern matches nothing, a key or a ratio is wrong.
    """
    named = [(_clean(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter has requires_grad: an optimizer needs at least one. Unfreeze some, or add LoRA.")
    overrides = [_checked(override) for override in param_group_overrides]
    _check_patterns((o["pattern"] for o in overrides), [name for name, _ in named])
    if lora_plus_ratio is not None:
        overrides.insert(0, _lora_plus(lora_plus_ratio, [name for name, _ in named]))

    groups: dict[tuple[float, float], ParamGroup] = {}
    for name, param in named:
        lr_mult, wd_mult = 1.0, 1.0 if param.ndim >= 2 or decay_norms_and_biases else 0.0
        for override in overrides:
            if fnmatchcase(name, override["pattern"]):
                lr_mult, wd_mult = override.get("lr_mult", lr_mult), override.get("wd_mult", wd_mult)
        group = groups.setdefault(
            (lr_mult, wd_mult),
            {"params": [], "lr": lr * lr_mult, "weight_decay": weight_decay * wd_mult}
            | {"lr_mult": lr_mult, "wd_mult": wd_mult},
        )
        group["params"].append(param)
    return list(groups.values())


def _clean(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    return re.sub(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module)(?=\.)", "", name).lstrip(".")


def _checked(override: Mapping[str, Any]) -> dict[str, Any]:
    keys = set(override)
    if "pattern" not in keys or len(keys) < 2 or not keys <= {"pattern", "lr_mult", "wd_mult"}:
        raise ValueError(
            f"param_group_overrides entry {dict(override)}: an entry has 'pattern' and 'lr_mult' or 'wd_mult' or both. "
            "Example: {pattern: '*embed_tokens*', lr_mult: 0.1}."
        )
    return dict(override)


def _check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"param_group_overrides pattern {pattern!r} matches none of {len(names)} trainable parameters, such as "
                f"{', '.join(names[:3])}: patterns are wildcards on whole names. Correct it, or remove the entry."
            )


def _lora_plus(ratio: float, names: Sequence[str]) -> dict[str, Any]:
    if ratio <= 0.0:
        raise ValueError(f"lora_plus_ratio={ratio}: the ratio must be > 0. Around 16 is usual; leave it out for LoRA.")
    if not any(".lora_B." in name for name in names):
        raise ValueError(f"lora_plus_ratio={ratio} on a model without lora_B: it needs LoRA. Remove it, or add LoRA.")
    return {"pattern": "*.lora_B.*", "lr_mult": ratio}

"""Which attention a model runs with, decided before any weight is read."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Fastest first; what cannot run here gives way to the next.
_LADDER = ("flash_attention_3", "flash_attention_2", "sdpa", "eager")
_SUPPORT_FLAGS = {
    "flash_attention_3": "_supports_flash_attn",
    "flash_attention_2": "_supports_flash_attn",
    "sdpa": "_supports_sdpa",
    "flex_attention": "_supports_flex_attn",
}


def choose_attention(
    model_class: Any, config: Any, requested: str | None, dtype: Any, *, strict: bool = False
) -> str | None:
    """The attention implementation to load with.

    Args:
        model_class: the transformers class; None (remote code) leaves the choice to it.
        config: its config.
        requested: a name; None takes the first of the ladder that runs. A name outside the ladder, such as one
            registered with ``AttentionInterface`` or a kernel repository, is taken as it is.
        dtype: of the weights; flash attention needs half precision, or a cast under autocast that is not known here.
        strict: refuse to fall back.

    Returns: a name for transformers, or None to let it choose.
    Raises: ValueError: ``strict``, and the requested one cannot run.
    """
    if model_class is None or (requested is not None and requested not in (*_LADDER, "flex_attention")):
        return requested
    if requested is None:
        return next(name for name in _LADDER if _obstacle(name, model_class, dtype, config) is None)
    obstacle = _obstacle(requested, model_class, dtype, config)
    if obstacle is None:
        return requested
    below = _LADDER[_LADDER.index(requested) + 1 :] if requested in _LADDER else _LADDER[2:]
    chosen = next(name for name in below if _obstacle(name, model_class, dtype, config) is None)
    if strict:
        raise ValueError(
            f"attn_implementation={requested!r} cannot run: {obstacle}. This model and machine run {chosen!r}. "
            "Choose it, or drop strict to fall back."
        )
    logger.warning("attention: %s instead of %s, since %s.", chosen, requested, obstacle)
    return chosen


def pin_sdpa(model: Any, methods: Sequence[str]) -> None:
    """Let this model's forward use only these SDPA backends, by wrapping the instance's forward.

    Args:
        model: a model that runs with ``sdpa``.
        methods: names of ``torch.nn.attention.SDPBackend``, or its members, best first.

    Raises: ValueError: an unknown name, or a model that runs another attention.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if model.config._attn_implementation != "sdpa":
        raise ValueError(
            f"sdpa_method={list(methods)} on a model with {model.config._attn_implementation} attention: it "
            "acts on sdpa. "
            "Set attn_implementation: sdpa, or remove sdpa_method."
        )
    allowed = {name: member for name, member in SDPBackend.__members__.items() if name not in ("ERROR", "OVERRIDEABLE")}
    backends = []
    for method in methods:
        name = str(getattr(method, "name", method)).rsplit(".", 1)[-1].upper()
        if name not in allowed:
            raise ValueError(f"sdpa_method {method!r}: choose among {', '.join(allowed)}. Correct the name.")
        backends.append(allowed[name])
    forward = model.forward

    @functools.wraps(forward)
    def pinned(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(backends):
            return forward(*args, **kwargs)

    model.forward = pinned


def _obstacle(name: str, model_class: Any, dtype: Any, config: Any) -> str | None:
    """Why an attention cannot run, or None."""
    flag = _SUPPORT_FLAGS.get(name)
    if flag is not None and not getattr(model_class, flag, False):
        return f"{model_class.__name__} does not support it"
    if not name.startswith("flash"):
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    available = is_flash_attn_3_available() if name.endswith("3") else is_flash_attn_2_available()
    if not available:
        return "its package is not installed (pip install flash-attn)"
    weights = config.dtype if dtype == "auto" else dtype
    return None if weights in (torch.bfloat16, torch.float16) else f"weights are {weights}, and it takes half precision"

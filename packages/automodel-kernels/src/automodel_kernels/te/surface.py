"""What each release of Transformer Engine calls things: one row per change, checked against the real wheels."""

import re
from dataclasses import dataclass

from automodel_kernels.te.availability import TEUnavailableError, te_version


@dataclass(frozen=True)
class Surface:
    """Names of one range of releases."""

    since: tuple[int, int]
    autocast: str
    """Context manager in ``transformer_engine.pytorch``."""
    recipe: str
    """Its recipe parameter."""
    group: str
    """Its parameter for the process group that shares amax statistics."""
    cross_entropy: tuple[str, ...]
    """Parameters of ``parallel_cross_entropy`` in order."""
    cross_entropy_by_keyword: bool
    """False where it is an autograd function's ``apply``, which takes no keywords."""


_CE = ("target", "label_smoothing", "reduce_loss", "dist_process_group", "ignore_idx")
TABLE = (
    Surface((2, 4), "fp8_autocast", "fp8_recipe", "fp8_group", ("_input", *_CE), False),
    Surface((2, 9), "autocast", "recipe", "amax_reduction_group", ("_input", *_CE), False),
    Surface((2, 11), "autocast", "recipe", "amax_reduction_group", ("inp", *_CE), True),
)
LINEAR = ("in_features", "out_features", "bias", "params_dtype", "device")
NORM = ("normalized_shape", "eps", "device", "dtype", "zero_centered_gamma")
ATTENTION = (
    "num_attention_heads", "kv_channels", "num_gqa_groups", "attention_dropout", "qkv_format", "attn_mask_type",
    "window_size", "softmax_scale",
)  # fmt: skip
ATTENTION_CALL = ("query_layer", "key_layer", "value_layer", "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q",
                  "max_seqlen_kv", "qkv_format", "attn_mask_type")  # fmt: skip
RECIPES = {
    "block": "Float8BlockScaling",
    "current": "Float8CurrentScaling",
    "delayed": "DelayedScaling",
    "mxfp8": "MXFP8BlockScaling",
    "nvfp4": "NVFP4BlockScaling",
}


def surface(version: str = "") -> Surface:
    """The row for a release, by default for the installed one.

    Raises: TEUnavailableError: older than the first row.
    """
    version = version or te_version()
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    rows = [row for row in TABLE if row.since <= number]
    if not rows:
        raise TEUnavailableError(
            f"Transformer Engine {version or 'of unknown version'}: releases from 2.4 on are supported. Upgrade it."
        )
    return rows[-1]

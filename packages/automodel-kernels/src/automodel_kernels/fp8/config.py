"""The ``fp8`` section of a configuration."""

from dataclasses import dataclass, field
from typing import Literal

RECIPES = ("rowwise", "rowwise_with_gw_hp", "tensorwise")


@dataclass(frozen=True)
class FP8Config:
    """FP8 training of linear layers through torchao."""

    enabled: bool = True
    """False leaves the model as it is; the report says so."""
    recipe_name: Literal["rowwise", "rowwise_with_gw_hp", "tensorwise"] = "tensorwise"
    """``tensorwise`` is fastest, ``rowwise`` closer to bfloat16, ``rowwise_with_gw_hp`` keeps weight gradients wide."""
    enable_fsdp_float8_all_gather: bool = False
    """FSDP2 gathers weights in FP8, at half the traffic; ``tensorwise`` only."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """One all-reduce for all weight scales after the optimizer step; needs the FP8 all-gather."""
    force_recompute_fp8_weight_in_bwd: bool = False
    """Kept for configurations that carry it; torchao deprecates it, and True is refused with the replacement."""
    filter_fqns: list[str] = field(default_factory=lambda: ["lm_head"])
    """Parts of module names that stay in high precision. One that matches no linear layer is an error."""
    emulate: bool = False
    """Compute the FP8 numbers without FP8 hardware: for tests, slow."""

    def __post_init__(self) -> None:
        if self.recipe_name not in RECIPES:
            raise ValueError(f"fp8.recipe_name={self.recipe_name!r}: it must be one of {', '.join(RECIPES)}.")
        if self.enable_fsdp_float8_all_gather and self.recipe_name != "tensorwise":
            raise ValueError(
                f"fp8.enable_fsdp_float8_all_gather=True with recipe_name={self.recipe_name!r}: only 'tensorwise' "
                "gathers in FP8. Choose that recipe, or set it to False."
            )
        if self.precompute_float8_dynamic_scale_for_fsdp and not self.enable_fsdp_float8_all_gather:
            raise ValueError(
                "fp8.precompute_float8_dynamic_scale_for_fsdp=True without enable_fsdp_float8_all_gather: there is no "
                "scale to compute ahead. Set both, or neither."
            )
        if self.force_recompute_fp8_weight_in_bwd:
            raise ValueError(
                "fp8.force_recompute_fp8_weight_in_bwd=True: torchao has deprecated it. Turn on activation "
                "checkpointing, which recomputes the cast too, and remove the key."
            )

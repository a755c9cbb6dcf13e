"""What to adapt and how."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

_A_INITS = ("xavier", "kaiming", "gaussian", "pissa")


@dataclass
class PeftConfig:
    """LoRA and its relatives. The defaults train every linear layer but the output head at rank 8.

    Patterns are wildcards on a module's whole name (``*.q_proj``, ``model.layers.0.*``); one without a wildcard also
    matches the end of a name (``q_proj``).
    """

    target_modules: Sequence[str] = field(default_factory=list)
    """Linear layers to adapt. Every pattern must match something. Empty: all linear layers but the output head."""
    exclude_modules: Sequence[str] = field(default_factory=list)
    """Taken out of what the targets matched."""
    match_all_linear: bool = False
    """All linear layers but the output head, whatever else ``target_modules`` names."""
    dim: int = 8
    """Rank."""
    alpha: float = 32
    """Numerator of the scaling: ``alpha / dim``, or ``alpha / sqrt(dim)`` with ``use_rslora``."""
    dropout: float = 0.0
    dropout_position: str = "post"
    """``pre`` drops inputs of ``lora_A``, as the ``peft`` library does; ``post`` drops outputs of ``lora_B``."""
    lora_A_init: str = "xavier"
    """xavier or kaiming (uniform), gaussian (std 1/dim), or pissa (the weight's principal part, arXiv:2404.02948)."""
    lora_dtype: Any = None
    """A ``torch.dtype`` or its name; None: the base weight's, and float32 on a quantised base."""
    use_triton: bool = False
    """A request for the kernels of automodel-kernels; whoever applies the config hands their rule in."""
    use_dora: bool = False
    """Train direction and magnitude apart (arXiv:2402.09353)."""
    use_rslora: bool = False
    """Scale by the square root of the rank (arXiv:2312.03732)."""
    modules_to_save: Sequence[str] = field(default_factory=list)
    """Modules that train in full beside the adapter and are saved with it."""
    target_parameters: Sequence[str] = field(default_factory=list)
    """Fused expert weights to adapt, such as ``*.experts.gate_up_proj``: ``[experts, out, in]`` parameters."""
    trainable_token_indices: "Sequence[int] | Mapping[str, Sequence[int]]" = field(default_factory=list)
    """Rows of the input embedding (and of a head tied to it) that train while the others stay, such as those of added
    tokens; or rows by module name, ``{embed_tokens: [...], lm_head: [...]}`` where the head is a weight of its own."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else list(value or ()))
        self.lora_dtype = _as_dtype(self.lora_dtype)
        self._check()

    @property
    def scaling(self) -> float:
        """Factor on the product of B and A."""
        return self.alpha / (math.sqrt(self.dim) if self.use_rslora else self.dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the keys that ``from_dict`` and YAML take."""
        values = dataclasses.asdict(self)
        if self.lora_dtype is not None:
            values["lora_dtype"] = str(self.lora_dtype).removeprefix("torch.")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PeftConfig":
        """Raises: ValueError: a key that is no field."""
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"PeftConfig has no {', '.join(unknown)}: fields are {', '.join(known)}. Correct the key.")
        return cls(**values)

    def _check(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim={self.dim} for LoRA: the rank must be >= 1. 8 to 64 is usual.")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} for LoRA: it must be > 0. Twice the rank is usual.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} for LoRA: it must be in [0, 1). 0.05 is usual.")
        if self.dropout_position not in ("pre", "post"):
            raise ValueError(f"dropout_position={self.dropout_position!r}: choose 'pre' or 'post'. peft uses 'pre'.")
        if self.lora_A_init not in _A_INITS:
            raise ValueError(
                f"lora_A_init={self.lora_A_init!r}: choose one of {', '.join(_A_INITS)}. Correct the name."
            )
        if self.use_dora and self.dropout and self.dropout_position == "post":
            raise ValueError(
                f"use_dora with dropout={self.dropout} after lora_B: DoRA's dropout acts on inputs. "
                "Set dropout_position: pre."
            )
        if self.use_dora and self.lora_A_init == "pissa":
            raise ValueError(
                "use_dora with lora_A_init='pissa': one of them at a time. Use xavier or kaiming with DoRA."
            )


def _as_dtype(given: Any) -> torch.dtype | None:
    if given is None or isinstance(given, torch.dtype):
        return given
    dtype = getattr(torch, str(given).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"lora_dtype={given!r}: give a floating dtype such as float32 or bfloat16, or leave it out.")
    return dtype

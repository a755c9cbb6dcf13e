"""Names of dtypes, and the two keys under which people write them."""

from typing import Any, Literal

import torch


def resolve_dtype(dtype: Any, torch_dtype: Any = None) -> "torch.dtype | Literal['auto']":
    """One dtype from ``dtype`` and its older name.

    Args:
        dtype: ``auto``, a ``torch.dtype``, or a name with or without ``torch.``.
        torch_dtype: the same, or None.

    Raises: ValueError: the two contradict each other, or the name is no floating dtype.
    """
    if torch_dtype is not None:
        if dtype != "auto" and _parse(dtype) != _parse(torch_dtype):
            raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype}: they are one setting. Keep dtype.")
        dtype = torch_dtype
    return _parse(dtype)


def _parse(given: Any) -> "torch.dtype | Literal['auto']":
    if given is None or given == "auto":
        return "auto"
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    name = str(given).removeprefix("torch.")
    dtype = given if isinstance(given, torch.dtype) else getattr(torch, short.get(name, name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={given!r}: give auto, float32, bfloat16 or float16. Correct the name.")
    return dtype

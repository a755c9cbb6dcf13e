"""The safetensors names of torch dtypes."""

from __future__ import annotations

import torch

from automodel_ckpt.errors import UnsupportedState

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"F32"``.

    Raises: UnsupportedState: safetensors has no such dtype.
    """
    if dtype not in _NAMES:
        allowed = ", ".join(sorted(_DTYPES))
        raise UnsupportedState(f"a tensor of {dtype}: safetensors stores {allowed}. Cast it, or leave it out.")
    return _NAMES[dtype]


def dtype_of(name: str) -> torch.dtype:
    """``"F32"`` -> ``torch.float32``.

    Raises: UnsupportedState: the name is not one of ours.
    """
    if name not in _DTYPES:
        raise UnsupportedState(
            f"dtype {name!r} in a file: known are {', '.join(sorted(_DTYPES))}. Upgrade automodel-ckpt."
        )
    return _DTYPES[name]

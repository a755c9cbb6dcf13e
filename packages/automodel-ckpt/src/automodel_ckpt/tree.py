"""Nested Python state as JSON plus tensors, with no pickle: what goes in comes out bit for bit.

Plain JSON values stand for themselves. Everything else is an object with a single key that starts with ``$``:
``$float`` (nan, inf), ``$bytes`` (base64), ``$tuple``, ``$map`` (a dict with keys that are not strings or that
start with ``$``), ``$tensor`` and ``$array`` (a name in the tensor table).
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automodel_ckpt.errors import CorruptCheckpoint, UnsupportedState


def encode(value: Any, tensors: dict[str, Tensor], *, path: str) -> Any:
    """``value`` as JSON; its tensors go into ``tensors`` under their dotted path.

    Raises: UnsupportedState: a value of another type, named by its path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return {"$array": _put(tensors, path, _from_numpy(value, path)), "scalar": isinstance(value, np.generic)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": struct.pack("<d", value).hex()}
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        return {"$tensor": _put(tensors, path, value)}
    if isinstance(value, Mapping):
        return _encode_mapping(value, tensors, path)
    if isinstance(value, (list, tuple)):
        items = [encode(item, tensors, path=f"{path}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise UnsupportedState(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}: state may hold None, bool, int, float, str, "
        "bytes, tensors, numpy arrays, and lists, tuples and dicts of these. Give its state_dict() instead."
    )


def _encode_mapping(value: Mapping, tensors: dict[str, Tensor], path: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item, tensors, path=f"{path}.{key}") for key, item in value.items()}
    return {
        "$map": [
            [encode(key, tensors, path=f"{path}.key"), encode(item, tensors, path=f"{path}.{key}")]
            for key, item in value.items()
        ]
    }


def _put(tensors: dict[str, Tensor], path: str, tensor: Tensor) -> str:
    name, n = path, 1
    while name in tensors:  # the keys 1 and "1" of one dict give the same path
        n += 1
        name = f"{path}~{n}"
    tensors[name] = tensor
    return name


def _from_numpy(value: np.generic | np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except TypeError as error:
        raise UnsupportedState(
            f"{path} is a numpy value of dtype {value.dtype}: only numeric dtypes that torch knows are stored. "
            "Convert it to a list."
        ) from error


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`.

    Raises: CorruptCheckpoint: not something that `encode` writes.
    """
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: decode(item, tensors) for key, item in value.items()}
    try:
        return _decode_tagged(tag, value, tensors)
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise CorruptCheckpoint(f"a stored value {str(value)[:80]!r} cannot be read: {error}") from error


def _decode_tagged(tag: str, value: dict, tensors: Mapping[str, Tensor]) -> Any:
    content = value[tag]
    if tag == "$float":
        return struct.unpack("<d", bytes.fromhex(content))[0]
    if tag == "$bytes":
        return base64.b64decode(content, validate=True)
    if tag == "$tuple":
        return tuple(decode(item, tensors) for item in content)
    if tag == "$map":
        return {decode(key, tensors): decode(item, tensors) for key, item in content}
    if tag == "$tensor":
        return tensors[content]
    if tag == "$array":
        array = tensors[content].numpy()
        return array[()] if value["scalar"] else array
    raise ValueError(f"unknown tag {tag}")


def tensor_names(value: Any) -> set[str]:
    """Every tensor name that an encoded value refers to."""
    if isinstance(value, list):
        return set().union(*(tensor_names(item) for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    named = {content for tag, content in value.items() if tag in ("$tensor", "$array") and isinstance(content, str)}
    return named.union(*(tensor_names(item) for item in value.values()))

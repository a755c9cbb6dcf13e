"""Pretraining data that is tokenised already: Megatron ``.bin``/``.idx`` pairs and NanoGPT shards, memory-mapped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from glob import glob
from itertools import accumulate
from pathlib import Path

import numpy as np

from automodel_data.errors import DataError

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_NANOGPT_MAGIC = 20240520
_NANOGPT_HEADER_BYTES = 256 * 4


class TokenBlocks:
    """Map-style blocks of ``seq_length`` tokens over token arrays; every token is trained, no block spans two arrays.

    Args:
        shards: one-dimensional integer arrays, memory-mapped ones among them.
        seq_length: tokens per block; what is left at a shard's end is not used, and counted in ``num_tokens_cut``.
        name: what errors call the data.

    Raises: DataError: no shard holds a block.
    """

    def __init__(self, shards: Sequence[np.ndarray], *, seq_length: int, name: str) -> None:
        if seq_length < 2:
            raise DataError(f"seq_length={seq_length}: a block needs at least 2 tokens.")
        self._shards, self.seq_length = list(shards), seq_length
        self._ends = list(accumulate(len(shard) // seq_length for shard in self._shards))
        self.num_tokens_cut = sum(len(shard) % seq_length for shard in self._shards)
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{name} holds no block of seq_length={seq_length} tokens. Lower seq_length, or add data.")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        start = (index - (self._ends[shard - 1] if shard else 0)) * self.seq_length
        ids = self._shards[shard][start : start + self.seq_length].astype(np.int64).tolist()
        return {"input_ids": ids, "labels": list(ids)}

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self), self.seq_length, dtype=np.int64)


class MegatronDataset(TokenBlocks):
    """A Megatron indexed dataset: ``prefix.bin`` and ``prefix.idx``, documents one after the other.

    Args:
        path_prefix: the path without ``.bin`` or ``.idx``.
        seq_length: tokens per block.

    Raises: DataError: a file is missing, is no Megatron index, or the two do not belong together.
    """

    def __init__(self, path_prefix: str | Path, *, seq_length: int) -> None:
        prefix = Path(str(path_prefix).removesuffix(".bin").removesuffix(".idx"))
        super().__init__([_megatron_tokens(prefix)], seq_length=seq_length, name=str(prefix))


class NanoGPTDataset(TokenBlocks):
    """NanoGPT token shards: with the 1 KiB header that names their length, or raw tokens.

    Args:
        pattern: a path or glob of ``.bin`` files.
        seq_length: tokens per block.
        dtype: of raw shards, ``uint16`` or ``uint32``; a header says ``uint16``.

    Raises: DataError: nothing matches, or a shard is cut short.
    """

    def __init__(self, pattern: str | Path, *, seq_length: int, dtype: str = "uint16") -> None:
        if dtype not in ("uint16", "uint32"):
            raise DataError(f"dtype={dtype!r} is not known. Choose 'uint16' or 'uint32'.")
        paths = [Path(found) for found in sorted(glob(str(pattern)))]
        if not paths:
            raise DataError(f"nothing is found at {pattern}. Give the path or glob of .bin shards.")
        super().__init__([_nanogpt_tokens(p, dtype) for p in paths], seq_length=seq_length, name=str(pattern))


def _megatron_tokens(prefix: Path) -> np.ndarray:
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, data):
        if not path.is_file():
            raise DataError(
                f"{path} is not there: a Megatron dataset is a .bin and an .idx file. Give their common prefix."
            )
    raw = index.read_bytes()
    if raw[:9] != _MEGATRON_MAGIC or len(raw) < 34:
        raise DataError(f"{index} is no Megatron index. Build it with Megatron's preprocessing tool.")
    code, num_sequences = raw[17], int.from_bytes(raw[18:26], "little")
    if code not in _MEGATRON_DTYPES or len(raw) < 34 + 12 * num_sequences:
        raise DataError(f"{index} is damaged (dtype code {code}, {num_sequences} sequences). Build it again.")
    sizes = np.frombuffer(raw, np.int32, num_sequences, offset=34).astype(np.int64)
    pointers = np.frombuffer(raw, np.int64, num_sequences, offset=34 + 4 * num_sequences)
    dtype = np.dtype(_MEGATRON_DTYPES[code])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if not np.array_equal(pointers, starts[:-1] * dtype.itemsize) or data.stat().st_size < starts[-1] * dtype.itemsize:
        raise DataError(
            f"{data} does not fit its index {index}: it is cut short or belongs to another. Build both again."
        )
    return np.memmap(data, dtype=dtype, mode="r", shape=(int(starts[-1]),))


def _nanogpt_tokens(path: Path, dtype: str) -> np.ndarray:
    header = np.fromfile(path, dtype=np.int32, count=3)
    if len(header) == 3 and header[0] == _NANOGPT_MAGIC:
        num_tokens = int(header[2])
        if path.stat().st_size < _NANOGPT_HEADER_BYTES + 2 * num_tokens:
            raise DataError(f"{path} is cut short: its header names {num_tokens} tokens. Download or write it again.")
        return np.memmap(path, dtype=np.uint16, mode="r", offset=_NANOGPT_HEADER_BYTES, shape=(num_tokens,))
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Download or write it again.")
    return np.memmap(path, dtype=np.dtype(dtype), mode="r")

"""The order of samples as a function of (seed, epoch): random access, O(1) memory, nothing to save.

A balanced Feistel network on the smallest even-width block that holds ``num_samples`` values is a bijection of that
block; walking the cycle until the value falls below ``num_samples`` restricts it to a permutation of
``range(num_samples)``.
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002); rounds are keyed by the splitmix64 mixer.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def permuted(positions: np.ndarray, *, num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Sample indices found at ``positions`` of the shuffled epoch.

    Args:
        positions: ``[N]`` int64, each in ``[0, num_samples)``.
        num_samples: size of the permuted set.
        seed: any int; together with ``epoch`` it names the permutation.
        epoch: any int.

    Returns: ``[N]`` int64 sample indices; over all positions each index appears exactly once.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if num_samples <= 2:
        return positions if _mix_int(seed, epoch) % 2 == 0 else (num_samples - 1 - positions)
    half_bits = max(1, (int(num_samples - 1).bit_length() + 1) // 2)
    keys = [np.uint64(_mix_int(_mix_int(seed, epoch), r + 1)) for r in range(_ROUNDS)]
    values = _feistel(positions.astype(np.uint64), keys, half_bits)
    outside = values >= num_samples
    while outside.any():  # the block is less than 4x num_samples, so the expected walk is short
        values[outside] = _feistel(values[outside], keys, half_bits)
        outside = values >= num_samples
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: list[np.uint64], half_bits: int) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 arrays, which wrap around silently."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(a: int, b: int) -> int:
    x = (a * 0x9E3779B97F4A7C15 + b + 0x632BE59BD9B4E019) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)

"""Weighted mixtures of datasets, in exact proportions and without randomness that would have to be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from automodel_data.errors import DataError
from automodel_data.order import permuted
from automodel_data.packing import row_lengths


@dataclass(frozen=True)
class SourceShare:
    """What one source contributes to a mixture."""

    name: str
    num_samples: int
    num_tokens: int
    sample_share: float
    token_share: float
    epochs: float
    """How often the source is gone through; below 1, some of its rows are left out."""


class MixedDataset:
    """A map-style mixture: at every prefix, each source's share is as near its weight as whole rows allow.

    The next row always comes from the source that is furthest behind its weight (error diffusion), and a source gives
    its rows in permuted order, epoch after epoch. So the mixture is a function of its arguments, and a position in it
    is one integer.

    Args:
        datasets: name -> map-style dataset.
        weights: name -> relative weight; the sizes (in rows or tokens) where left out.
        by: ``samples`` or ``tokens``: what the weights are shares of.
        num_samples: rows of the mixture; as many as all sources together where left out.
        seed: names the order within the sources.

    Raises: DataError: no dataset, or a weight that is missing, negative or not a number.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        *,
        by: str = "samples",
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        if by not in ("samples", "tokens"):
            raise DataError(f"by={by!r} is not known. Choose 'samples' or 'tokens'.")
        if not datasets:
            raise DataError("a mixture of no datasets: at least one is needed. Name them in `datasets`.")
        if streams := [name for name, dataset in datasets.items() if not hasattr(dataset, "__len__")]:
            raise DataError(
                f"dataset {streams[0]!r} of the mixture is a stream. Use MixedStream (`mixture_stream`) for streams, "
                "or name a map-style dataset."
            )
        self.names, self.datasets = list(datasets), list(datasets.values())
        self._lengths = [row_lengths(dataset) for dataset in self.datasets]
        sizes = [len(n) if by == "samples" else int(n.sum()) for n in self._lengths]
        self._weights = checked_weights(self.names, weights, sizes)
        self._by, self._seed = by, seed
        self._source, self._draw = self._schedule(num_samples or sum(len(d) for d in self.datasets))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        source = int(self._source[index])
        return self.datasets[source][self._row(source, int(self._draw[index]))]

    def origin(self, index: int) -> tuple[str, int]:
        """Name of the source of row ``index``, and the row's index there."""
        source = int(self._source[index])
        return self.names[source], self._row(source, int(self._draw[index]))

    @cached_property
    def lengths(self) -> np.ndarray:
        lengths = np.zeros(len(self), dtype=np.int64)
        for source in range(len(self.datasets)):
            mine = self._source == source
            lengths[mine] = self._lengths[source][self._rows(source, self._draw[mine])]
        return lengths

    def shares(self) -> list[SourceShare]:
        """The realised proportions."""
        tokens = [int(self.lengths[self._source == i].sum()) for i in range(len(self.names))]
        counts = np.bincount(self._source, minlength=len(self.names)).tolist()
        return [
            SourceShare(name, count, num, count / len(self), num / max(1, sum(tokens)), count / len(dataset))
            for name, count, num, dataset in zip(self.names, counts, tokens, self.datasets)
        ]

    def _schedule(self, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of the mixture, its source and how many rows that source gave before."""
        source, draw = np.zeros(num_samples, dtype=np.int16), np.zeros(num_samples, dtype=np.int64)
        # A row of a source counts 1, or its source's mean tokens: proportions are then exact over whole epochs.
        cost = [1.0 if self._by == "samples" else float(lengths.mean()) for lengths in self._lengths]
        drawn = [0] * len(cost)
        active = [i for i, weight in enumerate(self._weights) if weight > 0]
        for position in range(num_samples):
            # Furthest behind: the least drawn for its weight, the row about to be drawn counted half.
            chosen = min(active, key=lambda i: (drawn[i] + 0.5) * cost[i] / self._weights[i])
            source[position], draw[position] = chosen, drawn[chosen]
            drawn[chosen] += 1
        return source, draw

    def _row(self, source: int, draw: int) -> int:
        return int(self._rows(source, np.array([draw]))[0])

    def _rows(self, source: int, draws: np.ndarray) -> np.ndarray:
        size = len(self.datasets[source])
        rows = np.empty(len(draws), dtype=np.int64)
        for epoch in np.unique(draws // size):
            here = draws // size == epoch
            seed = self._seed * 1_000_003 + source
            rows[here] = permuted(draws[here] % size, num_samples=size, seed=seed, epoch=int(epoch))
        return rows


def checked_weights(names: list[str], weights: Mapping[str, float] | None, sizes: list[int]) -> list[float]:
    if min(sizes) < 1:
        raise DataError(f"dataset {names[sizes.index(min(sizes))]!r} of the mixture has no rows. Leave it out.")
    if weights is None:
        return [float(size) for size in sizes]
    if set(weights) != set(names):
        raise DataError(
            f"weights name {sorted(weights)}, datasets {sorted(names)}: they must name the same. Add or remove some."
        )
    values = [float(weights[name]) for name in names]
    if not all(np.isfinite(v) and v >= 0 for v in values) or sum(values) <= 0:
        raise DataError(f"weights={dict(weights)}: each must be a number >= 0, and one above 0.")
    return values

"""Weighted mixtures of streams: in exact proportions, and resumed by reading on in every source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

from automodel_data.errors import DataError
from automodel_data.mixing import SourceShare, checked_weights

STOPS = ("all_exhausted", "first_exhausted")


@dataclass
class _Source:
    """One source on its way: where it is and what it has given."""

    stream: Any
    position: Mapping[str, Any]
    num_samples: int = 0
    num_tokens: int = 0
    num_epochs: int = 0
    rows: Iterator[tuple[dict[str, Any], Mapping[str, Any]]] | None = None

    def state(self) -> dict[str, Any]:
        counts = {"num_samples": self.num_samples, "num_tokens": self.num_tokens, "num_epochs": self.num_epochs}
        return {**counts, "position": self.position}


class MixedStream(IterableDataset):
    """A mixture of streams: the next row always comes from the source that is furthest behind its weight.

    So at every prefix each source's share is as near its weight as whole rows allow, without randomness: a position is
    a few integers for each source. A source that ends begins anew. Rows carry their number in the mixture as
    ``sample_id``, and ``source``'s rows keep their order.

    Args:
        datasets: name -> stream.
        weights: name -> relative weight.
        by: ``samples`` or ``tokens``: what the weights are shares of.
        num_samples: rows of an epoch of the mixture.
        stop: in place of ``num_samples``, an epoch ends as soon as every source has been gone through
            (``all_exhausted``, the default), or as soon as one has (``first_exhausted``).

    Raises: DataError: no stream among ``datasets``, or a weight that is missing, negative or not a number.
    """

    num_source_rows: int | None = None

    def __init__(
        self,
        datasets: Mapping[str, Any],
        weights: Mapping[str, float],
        *,
        by: str = "samples",
        num_samples: int | None = None,
        stop: str | None = None,
    ) -> None:
        _check_settings(by, stop, num_samples)
        for name, dataset in datasets.items():
            if not hasattr(dataset, "rows"):
                raise DataError(
                    f"dataset {name!r} of the mixture is no stream ({type(dataset).__name__}). Use MixedDataset "
                    "(`mixture`) for map-style datasets, or stream it."
                )
        values = checked_weights(list(datasets), weights, [1] * len(datasets))
        self._weights = {name: weight for name, weight in zip(datasets, values) if weight > 0}
        self.datasets, self._by, self._num_samples = dict(datasets), by, num_samples
        self._stop = None if num_samples else stop or "all_exhausted"
        self.name = " + ".join(self._weights)
        self._last = self.start()

    def start(self) -> dict[str, Any]:
        fresh = {name: _Source(stream, stream.start()) for name, stream in self.datasets.items()}
        return {"row": 0, "sources": {name: fresh[name].state() for name in self._weights}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for row, _ in self.rows())

    def rows(
        self, position: Mapping[str, Any] | None = None, *, num_workers: int = 0
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows from ``position`` on, each with the position behind it; ``num_workers`` processes a source encode ahead.

        Raises: DataError: a source without a usable row, and what the sources raise.
        """
        position = position or self.start()
        saved = position["sources"]
        sources = {name: _Source(self.datasets[name], **saved[name]) for name in self._weights}
        states = {name: source.state() for name, source in sources.items()}
        row = position["row"]
        while self._num_samples is None or row < self._num_samples:
            name = min(self._weights, key=lambda name: self._behind(sources[name], self._weights[name]))
            values = self._next_row(name, sources, num_workers)
            if values is None:
                return
            states = {**states, name: sources[name].state()}
            self._last = {"row": row + 1, "sources": states}
            yield {**values, "sample_id": row}, self._last
            row += 1

    def _behind(self, source: _Source, weight: float) -> float:
        """How far a source has come for its weight; the row about to be drawn counts half."""
        if self._by == "samples":
            return (source.num_samples + 0.5) / weight
        mean = source.num_tokens / source.num_samples if source.num_samples else 1.0
        return (source.num_tokens + 0.5 * mean) / weight

    def _next_row(self, name: str, sources: dict[str, _Source], num_workers: int) -> dict[str, Any] | None:
        """The next row of a source, which begins anew where it ends; None at the end of the mixture's epoch."""
        source = sources[name]
        while True:
            source.rows = source.rows or source.stream.rows(source.position, num_workers=num_workers)
            pair = next(source.rows, None)
            if pair is not None:
                values, source.position = pair
                source.num_samples += 1
                source.num_tokens += len(values["input_ids"])
                return values
            if not source.num_samples:
                raise DataError(f"no row of {source.stream.name} can be trained on. Check the format and the mask.")
            source.num_epochs += 1
            source.rows, source.position = None, source.stream.start()
            ended = [other.num_epochs > 0 for other in sources.values()]
            if self._stop and (all(ended) or self._stop == "first_exhausted"):
                return None

    def shares(self) -> list[SourceShare]:
        """The proportions of what was read last: so far in an epoch, or of a whole one."""
        sources = self._last["sources"]
        samples, tokens = (max(1, sum(s[key] for s in sources.values())) for key in ("num_samples", "num_tokens"))
        return [
            SourceShare(
                name, s["num_samples"], s["num_tokens"], s["num_samples"] / samples, s["num_tokens"] / tokens,
                epochs=float(s["num_epochs"]),
            )
            for name, s in sources.items()
        ]  # fmt: skip


def _check_settings(by: str, stop: str | None, num_samples: int | None) -> None:
    if by not in ("samples", "tokens"):
        raise DataError(f"by={by!r} is not known. Choose 'samples' or 'tokens'.")
    if stop not in (None, *STOPS):
        raise DataError(f"stop={stop!r} is not known. Choose {' or '.join(map(repr, STOPS))}.")
    if num_samples is not None and (stop is not None or num_samples < 1):
        raise DataError(f"num_samples={num_samples}, stop={stop!r}: give a number of rows >= 1, or stop, but not both.")

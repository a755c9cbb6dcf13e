"""Pack documents into rows of fixed size: which document goes where, and the rows that come of it.

Only lengths are looked at while packing, and only ids are kept: tokens are read when a row is asked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from automodel_data.errors import DataError
from automodel_data.order import permuted

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
STRATEGIES = ("bfd", "window", "sequential")


@dataclass(frozen=True)
class Packs:
    """Documents in pack order; pack ``p`` holds entries ``offsets[p]:offsets[p + 1]``. All arrays int64."""

    document: np.ndarray
    start: np.ndarray
    """First token of the piece within its document; 0 unless documents are split."""
    length: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pieces(self, pack: int) -> list[tuple[int, int, int]]:
        """``(document, start, length)`` of one pack."""
        part = slice(self.offsets[pack], self.offsets[pack + 1])
        return list(zip(self.document[part].tolist(), self.start[part].tolist(), self.length[part].tolist()))

    def utilisation(self, size: int) -> float:
        """Share of the packs' tokens that are not padding."""
        return float(self.length.sum()) / (size * max(1, len(self)))


def pack_lengths(lengths: np.ndarray, size: int, *, strategy: str = "bfd", window: int = 4096) -> Packs:
    """Distribute documents over packs of at most ``size`` tokens.

    Args:
        lengths: ``[N]`` tokens per document, each in ``[1, size]``.
        size: tokens per pack.
        strategy: ``bfd`` is best-fit decreasing over all documents, ``window`` the same over ``window`` documents at a
            time (what a stream needs), ``sequential`` fills packs in order.
        window: documents per window.

    Raises: DataError: an unknown strategy, or a document that does not fit.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if strategy not in STRATEGIES:
        raise DataError(f"packing strategy {strategy!r} is not known. Choose one of {', '.join(STRATEGIES)}.")
    if len(lengths) and (lengths.max() > size or lengths.min() < 1):
        raise DataError(
            f"document lengths span {lengths.min()}..{lengths.max()}: each must lie in 1..{size} to fit a pack."
        )
    if strategy == "sequential":
        bins = _next_fit(lengths.tolist(), size)
    elif strategy == "bfd":
        bins = _best_fit_decreasing(lengths, size)
    else:
        bins = []
        for first in range(0, len(lengths), window):
            bins += [[first + i for i in b] for b in _best_fit_decreasing(lengths[first : first + window], size)]
    return _as_packs(bins, lengths)


def _as_packs(bins: list[list[int]], lengths: np.ndarray) -> Packs:
    document = np.array([i for b in bins for i in b], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(b) for b in bins], dtype=np.int64)]).astype(np.int64)
    return Packs(document, np.zeros_like(document), lengths[document], offsets)


def _next_fit(lengths: list[int], size: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            bins.append([])
            room = size
        bins[-1].append(i)
        room -= length
    return bins


def _best_fit_decreasing(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Longest first, each into the fullest bin that has room.

    Bit ``r`` of the integer ``rooms`` says that some bin has exactly ``r`` tokens left, so the best fit for a length is
    the lowest set bit at or above it: two shifts instead of a search.
    """
    order = np.argsort(-lengths, kind="stable")
    by_room: list[list[list[int]]] = [[] for _ in range(size + 1)]
    bins: list[list[int]] = []
    rooms = 0
    for i, length in zip(order.tolist(), lengths[order].tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            candidates = by_room[room]
            chosen = candidates.pop()
            if not candidates:
                rooms ^= 1 << room
            chosen.append(i)
        else:
            room = size
            chosen = [i]
            bins.append(chosen)
        room -= length
        if room:
            if not by_room[room]:
                rooms |= 1 << room
            by_room[room].append(chosen)
    return bins


def _split_sequentially(lengths: np.ndarray, size: int) -> Packs:
    """Every pack full but the last: documents are cut where a pack ends."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate([ends - lengths, np.arange(0, total, size)]))
    document = np.searchsorted(ends, cuts, side="right")
    piece_ends = np.append(cuts[1:], total)
    pack = cuts // size
    offsets = np.searchsorted(pack, np.arange(-(-total // size) + 1))
    return Packs(document, cuts - (ends - lengths)[document], piece_ends - cuts, offsets.astype(np.int64))


class PackedSequence:
    """Rows of several documents each, isolated from one another by position ids that restart.

    ``PackedSequence(dataset, packed_sequence_size=4096).pack()`` gives a map-style dataset; its rows have
    ``input_ids``, ``labels`` (-100 at the first token of each document), ``position_ids``, ``seq_lens`` and
    ``sample_id``, the packed documents' indices.

    Args:
        dataset: map-style rows of token ids; ``lengths`` is used where it has them.
        split: accepted for old configurations, with a warning; the dataset is already a split.
        packed_sequence_size: most tokens of a row.
        split_across_pack: cut documents at the end of a pack and go on in the next (strategy ``sequential``).
        max_packs: keep only so many.
        strategy: see `pack_lengths`; ``sequential`` where ``split_across_pack``.
        drop_long_samples: leave out documents longer than a pack, counted in ``num_dropped``, instead of raising.
        seed: names the order of the packs; best-fit packing sorts by length, and training must not see that.

    Raises: DataError: a document longer than a pack, or nothing to pack.
    """

    def __init__(
        self,
        dataset: Any,
        split: str | None = None,
        packed_sequence_size: int = 4096,
        split_across_pack: bool = False,
        max_packs: int | None = None,
        *,
        strategy: str = "bfd",
        drop_long_samples: bool = False,
        seed: int = 0,
    ) -> None:
        if split is not None:
            logger.warning("packed_sequence.split has no effect: the dataset is a split already. Remove it.")
        if packed_sequence_size < 2:
            raise DataError(f"packed_sequence_size={packed_sequence_size}: at least 2 tokens are needed per pack.")
        self.dataset, self.size = dataset, packed_sequence_size
        self._split_across_pack, self._max_packs = split_across_pack, max_packs
        self._strategy, self._drop_long, self._seed = strategy, drop_long_samples, seed
        self.num_dropped = 0

    def pack(self) -> Any:
        """The packed dataset: a `PackedDataset`, or a `PackedStream` of a streaming dataset."""
        if hasattr(self.dataset, "num_source_rows"):
            return self._pack_stream()
        lengths = row_lengths(self.dataset)
        if self._split_across_pack:
            return PackedDataset(self.dataset, self._first(_split_sequentially(lengths, self.size)), size=self.size)
        kept = np.flatnonzero(lengths <= self.size)
        self.num_dropped = len(lengths) - len(kept)
        if self.num_dropped and not self._drop_long:
            raise DataError(
                f"{self.num_dropped} of {len(lengths)} documents are longer than packed_sequence_size={self.size} (the "
                f"longest has "
                f"{lengths.max()} tokens). Raise the size, or set drop_long_samples or split_across_pack."
            )
        packs = pack_lengths(lengths[kept], self.size, strategy=self._strategy)
        packs = Packs(kept[packs.document], packs.start, packs.length, packs.offsets)
        packs = packs if self._strategy == "sequential" else _reordered(packs, self._seed)
        return PackedDataset(self.dataset, self._first(packs), size=self.size)

    def _pack_stream(self) -> PackedStream:
        if self._split_across_pack or self._max_packs is not None:
            raise DataError(
                "a stream is packed block by block: split_across_pack and max_packs need the whole dataset. Leave them "
                "out, "
                "or use a map-style dataset."
            )
        strategy = "bfd" if self._strategy == "window" else self._strategy
        return PackedStream(self.dataset, size=self.size, strategy=strategy, drop_long_samples=self._drop_long)

    def _first(self, packs: Packs) -> Packs:
        if self._max_packs is None or self._max_packs >= len(packs):
            return packs
        offsets = packs.offsets[: self._max_packs + 1]
        end = offsets[-1]
        return Packs(packs.document[:end], packs.start[:end], packs.length[:end], offsets)


def _reordered(packs: Packs, seed: int) -> Packs:
    order = permuted(np.arange(len(packs)), num_samples=len(packs), seed=seed, epoch=0)
    sizes = np.diff(packs.offsets)[order]
    index = np.concatenate([np.arange(packs.offsets[p], packs.offsets[p + 1]) for p in order] or [np.arange(0)])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Packs(packs.document[index], packs.start[index], packs.length[index], offsets)


def row_lengths(dataset: Any) -> np.ndarray:
    """Tokens per row, int64; read row by row where the dataset does not know them."""
    lengths = getattr(dataset, "lengths", None)
    if lengths is None:
        lengths = [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    return np.asarray(lengths, dtype=np.int64)


class PackedDataset:
    """Map-style packed rows; built by `PackedSequence.pack`."""

    def __init__(self, dataset: Any, packs: Packs, *, size: int) -> None:
        if len(packs) == 0:
            raise DataError(
                "there is nothing to pack: the dataset has no document that fits. Check the data and the pack size."
            )
        self.dataset, self.packs, self.size = dataset, packs, size

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        pieces = [
            (document, self.dataset[document], slice(start, start + length))
            for document, start, length in self.packs.pieces(index)
        ]
        return _packed_row(pieces)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.add.reduceat(self.packs.length, self.packs.offsets[:-1])

    @property
    def utilisation(self) -> float:
        return self.packs.utilisation(self.size)


class PackedStream:
    """A streaming dataset, packed block by block as it is read by `StreamLoader`; built by `PackedSequence.pack`."""

    def __init__(self, dataset: Any, *, size: int, strategy: str, drop_long_samples: bool) -> None:
        self.dataset, self.size = dataset, size
        self._strategy, self._drop_long = strategy, drop_long_samples
        self.name, self.num_source_rows = dataset.name, dataset.num_source_rows
        self.start, self.rows = dataset.start, dataset.rows

    def pack_block(self, rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
        """Packed rows of one block. Raises: DataError: a document longer than a pack, unless those are dropped."""
        fitting = [row for row in rows if len(row["input_ids"]) <= self.size]
        if len(fitting) < len(rows) and not self._drop_long:
            raise DataError(
                f"{len(rows) - len(fitting)} documents of a block are longer than packed_sequence_size={self.size}. "
                f"Raise the "
                "size, set drop_long_samples, or set seq_length on the dataset."
            )
        packs = pack_lengths(np.array([len(row["input_ids"]) for row in fitting]), self.size, strategy=self._strategy)
        return [
            _packed_row(
                [(fitting[d]["sample_id"], fitting[d], slice(start, start + n)) for d, start, n in packs.pieces(p)]
            )
            for p in range(len(packs))
        ]


def _packed_row(pieces: list[tuple[int, dict[str, Any], slice]]) -> dict[str, list[int]]:
    """One packed row of ``(sample id, row, tokens of it)``."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "seq_lens": [], "sample_id": []}
    for sample_id, source, part in pieces:
        ids = source["input_ids"][part]
        row["input_ids"] += ids
        row["labels"] += [IGNORE_INDEX, *source["labels"][part][1:]]
        row["position_ids"] += range(len(ids))
        row["seq_lens"].append(len(ids))
        row["sample_id"].append(sample_id)
    return row

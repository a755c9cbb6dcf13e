"""What a model would be trained on, for people: coloured tokens, and the checks that find the usual data mistakes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from automodel_data.errors import DataError
from automodel_data.packing import pack_lengths, row_lengths
from automodel_data.templates import ChatTemplate

IGNORE_INDEX = -100
_TRAINED, _IGNORED, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class DataSummary:
    """Figures of an encoded dataset; shares lie in 0..1, lengths are tokens."""

    num_rows: int
    num_tokens: int
    supervised_share: float
    """Tokens that are trained."""
    length_p50: int
    length_p95: int
    length_max: int
    histogram: list[tuple[int, int]]
    """``(upper bound, rows)``, bounds doubling."""
    stop_share: float
    """Rows whose last trained token is a stop token."""
    num_double_bos: int
    num_empty_labels: int
    num_duplicates: int
    """Rows that repeat an earlier row token by token and, where there are media, value by value."""
    num_bad: int = 0
    num_truncated: int = 0
    num_too_long: int = 0
    num_tokens_cut: int = 0
    bad_reasons: dict[str, int] = field(default_factory=dict)
    pack_size: int | None = None
    pack_utilisation: float | None = None
    """Share of packed rows that is not padding, at ``pack_size``; None where nothing fits or the family cannot pack."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    dataset: Any, tokenizer: Any, *, pack_size: int | None = None, max_rows: int | None = None
) -> DataSummary:
    """Go through a map-style dataset once.

    Args:
        dataset: rows of ``input_ids`` and ``labels``; its ``report``, where it has one, is taken over.
        tokenizer: names the stop and BOS tokens.
        pack_size: forecast packing at this size; the longest row rounded up to a power of two where left out.
        max_rows: look at the first rows only.

    Raises: DataError: no rows.
    """
    num_rows = len(dataset) if max_rows is None else min(max_rows, len(dataset))
    if not num_rows:
        raise DataError("the dataset has no rows to look at. Check the source and the report of bad rows.")
    stops, bos = stop_ids(tokenizer), tokenizer.bos_token_id
    seen: set[bytes] = set()
    supervised = stopped = doubled = empty = 0
    for i in range(num_rows):
        row = dataset[i]
        ids, labels = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)
        trained = np.flatnonzero(labels != IGNORE_INDEX)
        supervised += len(trained)
        empty += not len(trained)
        stopped += bool(len(trained)) and int(ids[trained[-1]]) in stops
        doubled += bos is not None and ids[:2].tolist() == [bos, bos]
        seen.add(_digest(ids, labels, row.get("features") or {}))
    lengths = row_lengths(dataset)[:num_rows]
    size = pack_size or max(2, 1 << int(lengths.max() - 1).bit_length())
    fitting = lengths[lengths <= size]
    report = getattr(dataset, "report", None)
    can_pack = getattr(getattr(dataset, "adapter", None), "can_pack", True)
    return DataSummary(
        num_rows=num_rows,
        num_tokens=int(lengths.sum()),
        supervised_share=supervised / int(lengths.sum()),
        length_p50=int(np.percentile(lengths, 50)),
        length_p95=int(np.percentile(lengths, 95)),
        length_max=int(lengths.max()),
        histogram=_histogram(lengths),
        stop_share=stopped / num_rows,
        num_double_bos=doubled,
        num_empty_labels=empty,
        num_duplicates=num_rows - len(seen),
        num_bad=getattr(report, "num_bad", 0),
        num_truncated=getattr(report, "num_truncated", 0),
        num_too_long=getattr(report, "num_too_long", 0),
        num_tokens_cut=getattr(report, "num_tokens_cut", 0),
        bad_reasons=report.reasons() if report is not None else {},
        pack_size=size,
        pack_utilisation=pack_lengths(fitting, size).utilisation(size) if can_pack and len(fitting) else None,
    )


def expects_stop(dataset: Any) -> bool:
    """Whether rows should end in a trained stop token: not so for blocks of plain text, which end anywhere."""
    from automodel_data.llm.pretrain import TextPretrainDataset
    from automodel_data.llm.token_files import MegatronDataset, NanoGPTDataset

    return not isinstance(dataset, (TextPretrainDataset, MegatronDataset, NanoGPTDataset))


def problems(summary: DataSummary, *, expect_stop: bool = True) -> list[str]:
    """What is wrong, a sentence each, worst first; ``expect_stop=False`` suits pretraining blocks."""
    s = summary
    found = [
        (s.num_empty_labels, f"{s.num_empty_labels} rows train nothing"),
        (s.supervised_share < 0.005, f"only {s.supervised_share:.2%} of tokens are trained"),
        (expect_stop and s.stop_share < 0.99, f"{1 - s.stop_share:.1%} of rows do not end in a trained stop token"),
        (s.num_double_bos, f"{s.num_double_bos} rows begin with two BOS tokens"),
        (s.num_bad, f"{s.num_bad} rows cannot be used: {s.bad_reasons}"),
        (s.num_truncated, f"{s.num_truncated} rows are truncated, {s.num_tokens_cut} tokens are lost"),
        (s.num_too_long, f"{s.num_too_long} rows are dropped because they are too long"),
        (s.num_duplicates > 0.01 * s.num_rows, f"{s.num_duplicates} rows repeat an earlier row"),
    ]
    return [text for is_found, text in found if is_found]


def format_summary(summary: DataSummary) -> str:
    """The summary as lines for a terminal."""
    s = summary
    widest = max(count for _, count in s.histogram)
    lines = [
        f"rows        {s.num_rows:,} ({s.num_bad:,} bad, {s.num_too_long:,} too long, {s.num_truncated:,} truncated)",
        f"tokens      {s.num_tokens:,}, supervised {s.supervised_share:.1%}",
        f"length      median {s.length_p50:,}, p95 {s.length_p95:,}, max {s.length_max:,}",
        *(f"  <= {bound:<7,} {count:>9,} {'#' * round(40 * count / widest)}" for bound, count in s.histogram),
        f"stop token  ends {s.stop_share:.1%} of rows' last trained turn",
        f"double BOS  {s.num_double_bos:,}; empty labels {s.num_empty_labels:,}; duplicates {s.num_duplicates:,}",
    ]
    if s.pack_utilisation is not None:
        lines.append(f"packing     {s.pack_utilisation:.2%} full at {s.pack_size:,} tokens")
    return "\n".join(lines)


def format_rows(dataset: Any, tokenizer: Any, *, rows: Iterable[int] = range(3), color: bool = True) -> str:
    """Rows as text: trained tokens green (or in guillemets without colour), ignored ones dim.

    Of rows with media, the size and tokens of each item are told, and a run of its tokens is written once.
    """
    adapter = getattr(dataset, "adapter", None)
    media_ids = {adapter.media_token_id(kind) for kind in adapter.kinds} if adapter is not None else set()
    shown = []
    for i in rows:
        if i < len(dataset):
            row = dataset[i]
            trained = sum(label != IGNORE_INDEX for label in row["labels"])
            head = f"row {i}: {len(row['input_ids'])} tokens, {trained} trained"
            media = dataset.describe_media(i) if adapter is not None else []
            shown.append("\n".join([head, *media, _painted(row, tokenizer, media_ids=media_ids, color=color)]))
    return "\n\n".join(shown)


def stop_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that may end a turn: the chat template's stop tokens and EOS."""
    stops = ChatTemplate(tokenizer).stops if getattr(tokenizer, "chat_template", None) else [tokenizer.eos_token]
    return {tokenizer.convert_tokens_to_ids(token) for token in stops if token}


def _digest(ids: np.ndarray, labels: np.ndarray, features: dict[str, Any]) -> bytes:
    digest = hashlib.blake2b(ids.tobytes() + labels.tobytes(), digest_size=16)
    for name in sorted(features):
        digest.update(np.ascontiguousarray(features[name]).tobytes())
    return digest.digest()


def trained_spans(dataset: Any, index: int, tokenizer: Any) -> list[tuple[str, bool]]:
    """A row as text, in pieces with whether each is trained; a run of media tokens is written once."""
    adapter = getattr(dataset, "adapter", None)
    media_ids = {adapter.media_token_id(kind) for kind in adapter.kinds} if adapter is not None else set()
    return _spans(dataset[index], tokenizer, media_ids)


def _spans(row: dict[str, Sequence[int]], tokenizer: Any, media_ids: set[int]) -> list[tuple[str, bool]]:
    parts = []
    pairs = zip(list(row["input_ids"]), list(row["labels"]))
    for trained, run in groupby(pairs, key=lambda pair: bool(pair[1] != IGNORE_INDEX)):
        text = _printable(_decoded([token for token, _ in run], tokenizer, media_ids))
        parts.append((text, trained))
    return parts


def _painted(row: dict[str, Sequence[int]], tokenizer: Any, *, media_ids: set[int], color: bool) -> str:
    parts = []
    for text, trained in _spans(row, tokenizer, media_ids):
        if color:
            parts.append(f"{_TRAINED if trained else _IGNORED}{text}{_RESET}")
        else:
            parts.append(f"\u00ab{text}\u00bb" if trained else text)
    return "".join(parts)


def _decoded(ids: Sequence[int], tokenizer: Any, media_ids: set[int]) -> str:
    parts = []
    for media_id, run in groupby(ids, key=lambda i: i if i in media_ids else None):
        run_ids = list(run)
        many = media_id is not None and len(run_ids) > 1
        text = tokenizer.decode(run_ids[:1] if many else run_ids, skip_special_tokens=False)
        parts.append(f"{text} x{len(run_ids)} " if many else text)
    return "".join(parts)


def _printable(text: str) -> str:
    """Text without control characters, so that data cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _histogram(lengths: np.ndarray) -> list[tuple[int, int]]:
    bounds = [1 << k for k in range(4, max(5, int(lengths.max() - 1).bit_length() + 1))]
    counts = np.histogram(lengths, bins=[0, *(b + 1 for b in bounds)])[0].tolist()
    return [(bound, count) for bound, count in zip(bounds, counts) if count]

"""From raw rows to encoded rows: render, tokenise, fit into ``seq_length``, and account for every row on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from automodel_data.encode import IGNORE_INDEX, TextEncoder, TokenRow
from automodel_data.errors import BadRow, DataError
from automodel_data.sources import rows_with_errors
from automodel_data.store import BadRowRecord, EncodeReport, TokenDataset, token_table
from automodel_data.templates import Rendered

logger = logging.getLogger(__name__)

OVERFLOWS = ("drop", "truncate_right", "truncate_left", "error")
_BATCH = 512  # rows per call of the tokenizer


@dataclass(frozen=True)
class RowPolicy:
    """What happens to rows that are too long or cannot be used; depends on the row alone, never on the rank."""

    seq_length: int | None = None
    """Most tokens of a row; None for no limit."""
    overflow: str = "drop"
    """For longer rows, one of `OVERFLOWS`."""
    on_bad: str = "skip"
    """``skip`` counts and reports bad rows, ``fail`` stops at the first."""
    max_bad_fraction: float = 0.01
    """More bad rows than this stop the run even under ``skip``."""

    def __post_init__(self) -> None:
        _one_of("overflow", self.overflow, OVERFLOWS)
        _one_of("on_bad", self.on_bad, ("skip", "fail"))
        if self.seq_length is not None and self.seq_length < 2:
            raise DataError(f"seq_length={self.seq_length}: a row needs at least 2 tokens. Raise it, or leave it out.")


def encode_source(
    source: Any,
    render: Callable[[Mapping[str, Any]], Rendered | TokenRow],
    encoder: TextEncoder,
    *,
    policy: RowPolicy,
    add_prefix: bool = False,
    limit: int | None = None,
) -> tuple[Any, EncodeReport]:
    """Encode every row of ``source``.

    Args:
        source: random access to raw rows (`sources.open_source`).
        render: raw row -> text with trained spans, or tokens that are ready; raises `BadRow`.
        encoder: the tokenizer side.
        policy: long and bad rows.
        add_prefix: texts get the tokenizer's own prefix (BOS); chat templates write their own.
        limit: use only the first rows.

    Returns: an Arrow-backed table with ``input_ids``, ``labels``, ``source_row``, and the report.
    Raises: DataError: a bad row under ``on_bad="fail"``, too many of them, or nothing left to train on.
    """
    report = EncodeReport()
    table = token_table(
        iter_encoded(source, render, encoder, policy=policy, add_prefix=add_prefix, limit=limit, report=report)
    )
    check_report(report, policy=policy, name=source.name)
    return table, report


def iter_encoded(
    source: Any,
    render: Callable[[Mapping[str, Any]], Rendered | TokenRow],
    encoder: TextEncoder,
    *,
    policy: RowPolicy,
    report: EncodeReport,
    add_prefix: bool = False,
    limit: int | None = None,
) -> Iterator[tuple[int, TokenRow]]:
    """``(source row, TokenRow)`` of each usable row in order; ``report`` is filled on the way."""
    numbered = islice(rows_with_errors(source), limit)
    while batch := list(islice(numbered, _BATCH)):
        rendered = [(i, _attempt(render, row)) for i, row in batch]
        texts = [result for _, result in rendered if isinstance(result, Rendered)]
        tokens = iter(encoder.encode(texts, add_prefix=add_prefix))
        for i, result in rendered:
            report.num_rows += 1
            row = next(tokens) if isinstance(result, Rendered) else result
            fitted = row if isinstance(row, BadRow) else _attempt(lambda r: _fit(r, policy, report), row)
            if isinstance(fitted, BadRow):
                _reject(fitted, BadRowRecord(source.name, source.line(i) - 1, fitted.why, fitted.path), policy, report)
            elif fitted is not None:
                report.num_kept += 1
                report.num_tokens += len(fitted.input_ids)
                report.num_label_tokens += int((fitted.labels[1:] != IGNORE_INDEX).sum())
                yield i, fitted


def _attempt(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, BadRow):
        return value
    try:
        return function(value)
    except BadRow as error:
        return error


def _fit(row: TokenRow, policy: RowPolicy, report: EncodeReport) -> TokenRow | None:
    """The row within ``seq_length``, None when policy drops it. Raises: BadRow: nothing in it is trained."""
    excess = len(row.input_ids) - (policy.seq_length or len(row.input_ids))
    if excess > 0:
        if policy.overflow == "error":
            raise DataError(
                f"a row has {len(row.input_ids)} tokens, seq_length is {policy.seq_length}, and overflow is 'error'. "
                f"Raise seq_length, or choose overflow from {OVERFLOWS}."
            )
        if policy.overflow == "drop":
            report.num_too_long += 1
            return None
        kept = slice(0, policy.seq_length) if policy.overflow == "truncate_right" else slice(excess, None)
        row = TokenRow(row.input_ids[kept], row.labels[kept])
    if not (row.labels[1:] != IGNORE_INDEX).any():
        raise BadRow("no supervised token" + (" within seq_length" if excess > 0 else ""))
    if excess > 0:
        report.num_truncated += 1
        report.num_tokens_cut += excess
    return row


def _reject(error: BadRow, record: BadRowRecord, policy: RowPolicy, report: EncodeReport) -> None:
    if policy.on_bad == "fail":
        hint = f" {error.hint}" if error.hint else ""
        raise DataError(f"{record}.{hint} Repair the row, or set on_bad='skip' to leave such rows out and report them.")
    report.bad_rows.append(record)


def check_report(report: EncodeReport, *, policy: RowPolicy, name: str) -> None:
    """Log what was left out. Raises: DataError: too many bad rows, or nothing left."""
    bad = len(report.bad_rows)
    shown = "; ".join(str(record) for record in report.bad_rows[:3])
    if bad > policy.max_bad_fraction * report.num_rows and report.num_kept:
        raise DataError(
            f"{bad} of {report.num_rows} rows of {name} cannot be used ({shown}): more than "
            f"max_bad_fraction={policy.max_bad_fraction}. "
            "Repair them, or raise max_bad_fraction."
        )
    if not report.num_kept:
        why = shown or f"all {report.num_too_long} rows are longer than seq_length={policy.seq_length}"
        raise DataError(f"no row of {name} can be trained on: {why}. Check the format, the mask and seq_length.")
    if bad:
        logger.warning("%s: %d of %d rows left out: %s", name, bad, report.num_rows, report.reasons())
    if report.num_too_long or report.num_truncated:
        logger.warning(
            "%s: seq_length=%s dropped %d rows and truncated %d of %d (overflow=%r)",
            name, policy.seq_length, report.num_too_long, report.num_truncated, report.num_rows, policy.overflow,
        )  # fmt: skip


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, allowed))}.")


__all__ = ["OVERFLOWS", "RowPolicy", "TokenDataset", "check_report", "encode_source", "iter_encoded"]

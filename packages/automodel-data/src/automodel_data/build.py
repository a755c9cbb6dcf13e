"""From raw rows to encoded rows: render, tokenise, fit into ``seq_length``, and account for every row on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from automodel_data.cache import published
from automodel_data.chunks import encoded_chunks
from automodel_data.encode import TextEncoder, TokenRow
from automodel_data.errors import BadRow, DataError
from automodel_data.fingerprint import dataset_key
from automodel_data.progress import counted
from automodel_data.sources import rows_with_errors
from automodel_data.store import BadRowRecord, EncodeReport, read_tables, token_table, write_tokens
from automodel_data.templates import Rendered

logger = logging.getLogger(__name__)

OVERFLOWS = ("drop", "truncate_right", "truncate_left", "error")
_BATCH = 512  # rows per call of the tokenizer
_FIRST_BATCH = 32  # of a stream one often wants the first few
_CHUNK = 2048  # rows that a worker process encodes at a time
_MAX_RECORDS = 10_000  # bad rows that are kept by name; all are counted


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
        one_of("overflow", self.overflow, OVERFLOWS)
        one_of("on_bad", self.on_bad, ("skip", "fail"))
        if self.seq_length is not None and self.seq_length < 2:
            raise DataError(f"seq_length={self.seq_length}: a row needs at least 2 tokens. Raise it, or leave it out.")


@dataclass(frozen=True)
class _Batch:
    """Rows on their way: what rendering made of each, and the texts among that."""

    results: list[tuple[int, Any]]
    texts: list[Rendered]

    def with_tokens(self, tokens: Sequence[TokenRow]) -> list[tuple[int, TokenRow | BadRow]]:
        """The rows in order, with the tokens of ``texts`` in place of these."""
        following = iter(tokens)
        return [(i, next(following) if isinstance(result, Rendered) else result) for i, result in self.results]


@dataclass(frozen=True)
class RowEncoder:
    """How a raw row becomes tokens: everything about a dataset but where its rows come from."""

    render: Callable[[Mapping[str, Any]], Any]
    """Raw row -> `templates.Rendered`, or a `TokenRow` that is ready; raises `BadRow`."""
    encoder: TextEncoder
    policy: RowPolicy
    add_prefix: bool = False
    """Texts get the tokenizer's own prefix (BOS); chat templates write their own."""
    options: Mapping[str, Any] | None = None
    """What ``render`` depends on beside the row, as JSON values: part of the cache key."""

    def _rendered(self, row: Mapping[str, Any]) -> Any:
        result = self.render(row)
        if isinstance(result, Rendered) and not result.text.isascii():
            try:
                result.text.encode()
            except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, which is no text
                raise BadRow("text with half of a surrogate pair", hint="Repair what wrote the file.") from None
        return result

    def rows(
        self, numbered: Iterator[tuple[int, Any]], source: Any, report: EncodeReport
    ) -> Iterator[tuple[int, TokenRow]]:
        """``(source row, TokenRow)`` of each usable row in order; ``report`` is filled on the way."""
        for i, row in self._attempted(numbered):
            fitted = row if isinstance(row, BadRow) else _attempt(partial(_fit, self.policy, report), row)
            report.num_rows += 1
            if isinstance(fitted, BadRow):
                _reject(fitted, source.place(i), self.policy, report)
            elif fitted is not None:
                report.num_kept += 1
                report.num_tokens += len(fitted.input_ids)
                report.num_label_tokens += fitted.num_label_tokens
                yield i, fitted

    def _attempted(self, numbered: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, TokenRow | BadRow]]:
        """Each row with its tokens, or with why there are none.

        The tokenizer does not hold the interpreter lock, so while a thread tokenises one batch, the next is rendered
        and the last one gets its labels. Nothing runs while a row is out of our hands: the caller may use the
        tokenizer, or fork.
        """
        rendered = self._render_batch(numbered, _FIRST_BATCH)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise") as thread:
            previous = _Batch([], [])
            encodings: list[Any] = []
            while rendered.results or previous.results:
                started = Event()
                tokenising = thread.submit(self._tokenise, rendered.texts, started)
                started.wait()  # the thread would otherwise wait for the interpreter lock, 5 ms as a rule
                done = previous.with_tokens(
                    self.encoder.labelled(previous.texts, encodings, add_prefix=self.add_prefix)
                )
                following = self._render_batch(numbered, _BATCH)
                encodings = tokenising.result()
                yield from done
                previous, rendered = rendered, following

    def _tokenise(self, texts: Sequence[Rendered], started: Event) -> list[Any]:
        started.set()
        return self.encoder.tokenise(texts)

    def _render_batch(self, numbered: Iterator[tuple[int, Any]], size: int) -> _Batch:
        results = [(i, _attempt(self._rendered, row)) for i, row in islice(numbered, size)]
        return _Batch(results, [result for _, result in results if isinstance(result, Rendered)])


def encode_source(
    source: Any, row_encoder: RowEncoder, *, limit: int | None = None, num_proc: int = 1, cache: bool = True
) -> tuple[Any, EncodeReport]:
    """Encode every row of ``source``.

    Args:
        source: random access to raw rows (`sources.open_source`).
        row_encoder: what makes tokens of a row.
        limit: use only the first rows.
        num_proc: processes that encode; the result does not depend on it.
        cache: keep the tokens on disk, where sources have a fingerprint (files and hub data do), and read them from
            there.

    Returns: a Hugging Face dataset with ``input_ids``, ``labels``, ``source_row``, and the report.
    Raises: DataError: a bad row under ``on_bad="fail"``, too many of them, or nothing left to train on.
    """
    if num_proc < 1:
        raise DataError(f"num_proc={num_proc}: at least 1 process is needed.")
    key = dataset_key(source, row_encoder, limit=limit) if cache and row_encoder.options is not None else None
    if key is None:
        report = EncodeReport()
        table = token_table(_encoded(source, row_encoder, limit, num_proc, report))
        check_report(report, policy=row_encoder.policy, name=source.name)
        return table, report
    entry = published(key, partial(_build_entry, source, row_encoder, limit, num_proc))
    table, report = read_tables(entry)
    check_report(report, policy=row_encoder.policy, name=source.name, bad_rows_file=entry / "bad_rows.jsonl")
    return table, report


def _build_entry(source: Any, row_encoder: RowEncoder, limit: int | None, num_proc: int, directory: Path) -> None:
    report = EncodeReport()
    write_tokens(directory, _encoded(source, row_encoder, limit, num_proc, report), report)
    check_report(report, policy=row_encoder.policy, name=source.name, quiet=True)


def _encoded(
    source: Any, row_encoder: RowEncoder, limit: int | None, num_proc: int, report: EncodeReport
) -> Iterator[tuple[int, TokenRow]]:
    stop = len(source) if limit is None else min(limit, len(source))
    if num_proc == 1 or stop <= _CHUNK:
        numbered = counted(rows_with_errors(source, 0, stop), "tokenise", stop)
        yield from row_encoder.rows(numbered, source, report)
        return
    chunks = [(start, min(start + _CHUNK, stop)) for start in range(0, stop, _CHUNK)]
    told = counted(chunks, "tokenise", stop, size=lambda chunk: chunk[1] - chunk[0])
    yield from encoded_chunks(told, source, row_encoder, report, num_workers=num_proc)


def _attempt(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, BadRow):
        return value
    try:
        return function(value)
    except BadRow as error:
        return error


def _fit(policy: RowPolicy, report: EncodeReport, row: TokenRow) -> TokenRow | None:
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
    if not row.num_label_tokens:
        raise BadRow("no supervised token" + (" within seq_length" if excess > 0 else ""))
    if excess > 0:
        report.num_truncated += 1
        report.num_tokens_cut += excess
    return row


def _reject(error: BadRow, place: tuple[str, int], policy: RowPolicy, report: EncodeReport) -> None:
    name, line = place
    record = BadRowRecord(name, line - 1, error.why, error.path)
    if policy.on_bad == "fail":
        hint = f" {error.hint}" if error.hint else ""
        raise DataError(f"{record}.{hint} Repair the row, or set on_bad='skip' to leave such rows out and report them.")
    report.first_hint = report.first_hint or error.hint
    if len(report.bad_rows) < _MAX_RECORDS:
        report.bad_rows.append(record)
    else:
        report.num_bad_unlisted += 1


def check_report(
    report: EncodeReport, *, policy: RowPolicy, name: str, bad_rows_file: Path | None = None, quiet: bool = False
) -> None:
    """Log what was left out. Raises: DataError: too many bad rows, or nothing left."""
    if not report.num_kept:
        why = _first_rows(report) or f"all {report.num_too_long} rows are longer than seq_length={policy.seq_length}"
        raise DataError(
            f"no row of {name} can be trained on: {why}.{_hint(report)} Check the format, the mask and seq_length."
        )
    if report.num_bad > policy.max_bad_fraction * report.num_rows:
        raise too_many_bad_rows(report, policy=policy, name=name)
    if not quiet:
        log_report(report, policy=policy, name=name, bad_rows_file=bad_rows_file)


def too_many_bad_rows(report: EncodeReport, *, policy: RowPolicy, name: str) -> DataError:
    return DataError(
        f"{report.num_bad} of {report.num_rows} rows of {name} cannot be used ({_first_rows(report)}): more than "
        f"max_bad_fraction={policy.max_bad_fraction}.{_hint(report)} Repair them, or raise max_bad_fraction."
    )


def log_report(report: EncodeReport, *, policy: RowPolicy, name: str, bad_rows_file: Path | None = None) -> None:
    """Warn of rows that were left out or cut."""
    if report.num_bad:
        where = f"; every one is in {bad_rows_file}" if bad_rows_file else ""
        logger.warning(
            "%s: %d of %d rows left out: %s%s", name, report.num_bad, report.num_rows, report.reasons(), where
        )
    if report.num_too_long or report.num_truncated:
        logger.warning(
            "%s: seq_length=%s dropped %d rows and truncated %d of %d (overflow=%r)",
            name, policy.seq_length, report.num_too_long, report.num_truncated, report.num_rows, policy.overflow,
        )  # fmt: skip


def _first_rows(report: EncodeReport) -> str:
    return "; ".join(str(record) for record in report.bad_rows[:3])


def _hint(report: EncodeReport) -> str:
    return f" {report.first_hint}" if report.first_hint else ""


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises: DataError: ``value`` is not allowed."""
    if value not in allowed:
        raise DataError(f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, allowed))}.")


def policy_options(policy: RowPolicy) -> dict[str, Any]:
    return asdict(policy)

"""What the training rows hold, in figures for the start screen, and the first row with what is trained marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from automodel_recipes.loggers.console import count

IGNORE_INDEX = -100
_FACT_ROWS = 2000
_FACT_ROWS_OF_STREAM = 200  # they are read a second time for training, maybe from far away

Span = tuple[str, bool]
"""A piece of text, and whether it is trained."""


@dataclass(frozen=True)
class DataFacts:
    """Figures of at most the first two thousand rows; a None is unknown, or means nothing for these rows."""

    num_rows: int | None
    """None for a stream, whose length nobody knows."""
    num_rows_seen: int
    num_tokens: int
    num_label_tokens: int
    max_length: int
    p95_length: int | None = None
    stop_share: float | None = None
    """Rows whose last trained token is one that ends a turn."""
    num_truncated: int = 0
    num_left_out: int = 0
    """Rows of the source that were bad or too long."""
    pack_utilisation: float | None = None
    """Share of the packed rows that holds tokens."""

    @property
    def is_complete(self) -> bool:
        """Whether every row was read."""
        return self.num_rows == self.num_rows_seen

    def __str__(self) -> str:
        share = 100 * self.num_label_tokens / max(self.num_tokens, 1)
        rows = "a stream of" if self.num_rows is None else f"{self.num_rows:,}"
        parts = [f"train {rows} rows", f"{count(self.num_tokens)} tokens", f"supervised {share:.1f} %"]
        if self.num_rows is not None:
            parts.append(f"truncated {100 * self.num_truncated / max(self.num_rows, 1):.2g} %")
        if self.num_left_out:
            parts.append(f"left out {self.num_left_out:,}")
        if self.p95_length is not None:
            parts.append(f"p95 {self.p95_length}")
        parts.append(f"longest {self.max_length}")
        if self.stop_share is not None:
            parts.append(f"stop token trained in {100 * self.stop_share:.3g} %")
        if self.pack_utilisation is not None:
            parts.append(f"packs {100 * self.pack_utilisation:.1f} % full")
        seen = "" if self.is_complete else f" (first {self.num_rows_seen:,} rows)"
        return ", ".join(parts) + seen


def gather_facts(dataset: Any, tokenizer: Any) -> DataFacts:
    """Count tokens and supervised tokens of a dataset's rows, or of a stream's first ones.

    Args:
        dataset: rows with ``input_ids`` and ``labels``; or what only iterates over such.
        tokenizer: says which tokens end a turn; rows without a label for each token have no such share.
    """
    from automodel_data.inspect import expects_stop, stop_ids

    num_rows = len(dataset) if hasattr(dataset, "__len__") else None
    if num_rows is None:
        rows = list(islice(dataset, _FACT_ROWS_OF_STREAM))
    else:
        rows = [dataset[i] for i in range(min(num_rows, _FACT_ROWS))]
    lengths = [len(row["input_ids"]) for row in rows]
    stops = stop_ids(tokenizer) if _is_text(rows) and expects_stop(dataset) else None
    return DataFacts(
        num_rows=num_rows,
        num_rows_seen=len(rows),
        num_tokens=sum(lengths),
        num_label_tokens=sum(sum(label != IGNORE_INDEX for label in row["labels"]) for row in rows),
        max_length=max(lengths, default=0),
        p95_length=int(np.percentile(lengths, 95)) if lengths else None,
        stop_share=None if stops is None else sum(_ends_in(row["labels"], stops) for row in rows) / max(len(rows), 1),
        **reported(dataset),
    )


def reported(dataset: Any) -> dict[str, int]:
    """What a dataset's own report says of rows that were cut or left out."""
    report = getattr(dataset, "report", None)
    left_out = getattr(report, "num_bad", 0) + getattr(report, "num_too_long", 0)
    return {"num_truncated": getattr(report, "num_truncated", 0), "num_left_out": left_out}


def first_row(dataset: Any, tokenizer: Any) -> list[Span]:
    """The first training row as text; empty where rows have no label for each token."""
    from automodel_data.inspect import trained_spans

    rows = dataset if hasattr(dataset, "__len__") else list(islice(dataset, 1))
    return trained_spans(rows, 0, tokenizer) if _is_text([rows[0]]) else []


def _is_text(rows: Sequence[Any]) -> bool:
    return bool(rows) and len(rows[0]["labels"]) == len(rows[0]["input_ids"])


def _ends_in(labels: Sequence[int], stops: set[int]) -> bool:
    trained = [label for label in labels if label != IGNORE_INDEX]
    return bool(trained) and int(trained[-1]) in stops

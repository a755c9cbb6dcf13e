"""Mixtures with vision-language sets among their sources."""

from __future__ import annotations

from typing import Any

from automodel_data.errors import DataError
from automodel_data.mixing import MixedDataset
from automodel_data.store import EncodeReport


def as_media_rows(dataset: Any) -> Any:
    """A mixture as rows for the vision-language collates; any other dataset as it is."""
    return MixedMediaRows(dataset) if isinstance(dataset, MixedDataset) else dataset


class MixedMediaRows:
    """What `VLMDataset` is for one set: rows of text sets, tokenised as always, get what a row without media has.

    Args:
        mixture: of `VLMDataset` sources of one processor and, if wanted, text sources of its tokenizer.

    Raises: DataError: no source takes images.
    """

    def __init__(self, mixture: MixedDataset) -> None:
        seeing = [source for source in mixture.datasets if hasattr(source, "adapter")]
        if not seeing:
            raise DataError(
                f"the mixture of {', '.join(mixture.names)} has no vision-language set. Add one, or use a text recipe."
            )
        self.mixture, self.adapter = mixture, seeing[0].adapter
        self.lengths = mixture.lengths
        self.media_kinds = tuple(sorted({kind for source in seeing for kind in source.media_kinds}))
        self.report = self._report()

    def _report(self) -> EncodeReport:
        """Of the sources, with label tokens of the rows that the mixture draws from each."""
        reports = [getattr(source, "report", None) or EncodeReport() for source in self.mixture.datasets]
        shares = self.mixture.shares()
        return EncodeReport(
            num_rows=sum(report.num_rows for report in reports),
            num_kept=len(self),
            num_too_long=sum(report.num_too_long for report in reports),
            num_truncated=sum(report.num_truncated for report in reports),
            num_tokens=int(self.lengths.sum()),
            num_label_tokens=round(sum(r.num_label_tokens * share.epochs for r, share in zip(reports, shares))),
            bad_rows=[record for report in reports for record in report.bad_rows],
        )

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.mixture[index]
        if "features" in row:
            return {**row, "media_kinds": self.media_kinds}
        columns = self.adapter.token_columns(row["input_ids"], row["labels"])
        named = {"features": {}, "media_kinds": self.media_kinds, "name": self.name_of(index)}
        return {"input_ids": row["input_ids"], "labels": row["labels"], **columns, **named}

    def name_of(self, index: int) -> str:
        """``source:row`` of a row of the mixture."""
        name, row = self.mixture.origin(index)
        return f"{name}:{row + 1}"

    def describe_media(self, index: int) -> list[str]:
        """As `VLMDataset.describe_media`; nothing for a row of text."""
        source, row = self._origin(index)
        return source.describe_media(row) if hasattr(source, "adapter") else []

    def pictures(self, index: int) -> list[Any]:
        """As `VLMDataset.pictures`; none for a row of text."""
        source, row = self._origin(index)
        return source.pictures(row) if hasattr(source, "adapter") else []

    def _origin(self, index: int) -> tuple[Any, int]:
        name, row = self.mixture.origin(index)
        return self.mixture.datasets[self.mixture.names.index(name)], row

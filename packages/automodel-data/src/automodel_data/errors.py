"""The errors of this package: every one names what was given, what is allowed and what to do."""

from __future__ import annotations


class DataError(ValueError):
    """Data, or a setting about data, that cannot be trained on. Command lines exit with ``exit_code``."""

    exit_code = 4


class BadRow(DataError):
    """One row that cannot be trained on; policy decides whether it is skipped or ends the run.

    Args:
        why: what is wrong, in a few words that are the same for every row with that defect.
        path: where in the row, as a JSON pointer such as ``/messages/2/content``.
        hint: what to do about it.
    """

    def __init__(self, why: str, *, path: str = "", hint: str = "") -> None:
        self.why, self.path, self.hint = why, path, hint
        super().__init__(": ".join(part for part in (path, why) if part) + (f". {hint}" if hint else ""))

    def __reduce__(self):  # keyword-only arguments do not survive the default pickling between processes
        return _rebuild_bad_row, (self.why, self.path, self.hint)


def _rebuild_bad_row(why: str, path: str, hint: str) -> BadRow:
    return BadRow(why, path=path, hint=hint)

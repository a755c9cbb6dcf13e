"""What is wrong with a configuration: every problem at once, each with its place in the file."""

from collections.abc import Iterable
from dataclasses import dataclass

from automodel_core.config.tree import Source


@dataclass(frozen=True)
class Problem:
    """One thing to correct: where it stands, which value it concerns, and what to do."""

    source: Source
    path: str
    """Dotted path of the value (``optimizer.lr``); empty when the problem concerns the file."""
    message: str

    @property
    def file(self) -> str:
        return self.source.file

    @property
    def line(self) -> int:
        """1-based; 0 when the value does not come from a file."""
        return self.source.line

    @property
    def column(self) -> int:
        """1-based; 0 when the value does not come from a file."""
        return self.source.column

    def __str__(self) -> str:
        place = f"{self.source} {self.path}" if self.path else str(self.source)
        return f"{place}: {self.message}"


class ConfigError(ValueError):
    """A configuration cannot be used. ``problems`` lists every reason; the text has one line for each."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[Problem, ...]]]:
        return (ConfigError, (self.problems,))

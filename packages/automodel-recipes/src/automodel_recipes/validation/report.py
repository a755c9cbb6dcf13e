"""What validation found."""

from dataclasses import dataclass, field

from automodel_core.config import Policy, Problem
from automodel_core.config.tree import Source


@dataclass(frozen=True)
class Deferred:
    """A target whose keywords source alone does not tell; it is bound when its library is imported."""

    source: Source
    path: str
    target: str
    reason: str


@dataclass
class Report:
    """Problems, and what could not be decided without importing."""

    policy: Policy
    problems: list[Problem] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)
    num_values: int = 0
    """Leaves that were looked at."""

    def add(self, source: Source, path: str, message: str) -> None:
        self.problems.append(Problem(source, path, message))

    def sort(self) -> None:
        """File order, so that problems read from top to bottom; overrides last."""
        self.problems.sort(key=lambda problem: (problem.line == 0, problem.line, problem.column))

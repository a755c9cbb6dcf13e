"""A collate function with its processor, in a form that worker processes can be given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BoundCollate:
    """``collate_fn(rows, processor, **keys)`` as a function of the rows."""

    collate_fn: Callable[..., dict[str, Any]]
    processor: Any
    keys: dict[str, Any]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """One batch."""
        return self.collate_fn(rows, self.processor, **self.keys)

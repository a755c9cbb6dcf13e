"""What an FP8 edit converted and what it left alone."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class FP8Report:
    """Names of converted linear layers, and ``(name, reason)`` of the others."""

    recipe: str
    converted: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.converted) + len(self.skipped)
        lines = [f"fp8 ({self.recipe}): {len(self.converted)} of {total} linear layers"]
        for reason, number in sorted(Counter(reason for _, reason in self.skipped).items()):
            lines.append(f"fp8: {number} left alone: {reason}")
        return "\n".join(lines)

"""What a parallel strategy did to a model, in lines that a run prints at its start."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ParallelReport:
    """The edits of ``ParallelContext.parallelize``, in the order in which they were made."""

    strategy: str
    """Name of the strategy: ``single``, ``ddp``, ``fsdp2`` or ``megatron_fsdp``."""
    layout: str
    """Axes larger than 1, such as ``dp_shard 2 x tp 2``."""
    edits: list[str] = field(default_factory=list)
    """One line per edit: what was changed, and how many modules or parameters it touched."""

    def add(self, line: str) -> None:
        """Append one line."""
        self.edits.append(line)

    def __str__(self) -> str:
        return "\n".join([f"{self.strategy}: {self.layout}", *(f"  {edit}" for edit in self.edits)])

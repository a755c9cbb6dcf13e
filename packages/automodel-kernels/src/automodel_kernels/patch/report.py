"""What a patch did: which module runs what, and why the others do not."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

MARK = "_automodel_kernels_report"
"""Attribute of a patched model that holds its report."""


@dataclass(frozen=True)
class Change:
    """One module whose forward was replaced."""

    name: str
    module_class: str
    op: str
    backend: str


@dataclass(frozen=True)
class Skip:
    """One module that a rule looked at and left alone."""

    name: str
    module_class: str
    op: str
    reason: str


@dataclass
class KernelReport:
    """The result of :func:`patch_model_with_kernel_optimizations`; printing it gives one line per op."""

    changes: list[Change] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    fallback: str = ""
    """Why the ops run on their PyTorch twins; empty when Triton runs them."""
    patched: list[nn.Module] = field(default_factory=list, repr=False)
    """The modules that carry a forward of their own; a deep copy of the model gets a report on its own modules."""

    def counts(self) -> dict[str, int]:
        """Number of changed modules of each op."""
        return dict(sorted(Counter(change.op for change in self.changes).items()))

    def unpatch(self) -> None:
        """Give every module its own forward back; a second call does nothing."""
        while self.patched:
            module = self.patched.pop()
            vars(module).pop("forward", None)
            vars(module).pop(MARK, None)

    def __str__(self) -> str:
        lines = []
        for (op, cls, backend), number in sorted(
            Counter((c.op, c.module_class, c.backend) for c in self.changes).items()
        ):
            lines.append(f"{op}: {number} x {cls} on {backend}")
        if self.fallback:
            lines.append(f"PyTorch twins are used: {self.fallback}")
        for (op, cls, reason), number in sorted(Counter((s.op, s.module_class, s.reason) for s in self.skips).items()):
            lines.append(f"{op}: {number} x {cls} left alone: {reason}")
        return "\n".join(lines) or "nothing was changed"

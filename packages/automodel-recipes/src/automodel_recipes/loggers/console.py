"""What a user sees: facts at the start, a line now and then, a summary at the end. Rank 0 only."""

import sys
from typing import Any, TextIO


class Console:
    """Labelled lines, styled on a terminal and plain in a pipe."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        from rich.console import Console as RichConsole

        self.enabled = enabled
        self._rich = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)

    def fact(self, label: str, text: str) -> None:
        """``label    text``, the label in bold."""
        self._print(f"{label:<9}", text)

    def blank(self) -> None:
        """An empty line between the parts of the screen."""
        if self.enabled:
            self._rich.print()

    def step(self, step: int, total: int, values: dict[str, str]) -> None:
        """``step 10/86 loss 1.612 ...``."""
        self._print(f"step {step}/{total} ", " ".join(f"{name} {value}" for name, value in values.items()))

    def sample(self, prompt: str, reference: str, generated: str) -> None:
        """One generated answer under its prompt, with a mark of whether it is the reference."""
        right = generated.strip() == reference.strip()
        self.fact("sample", one_line(prompt))
        self.fact("", f"-> {one_line(generated)} [{'exact' if right else 'expected ' + one_line(reference)}]")

    def _print(self, head: str, text: str) -> None:
        if not self.enabled:
            return
        from rich.text import Text

        # Text, not markup: model output and paths may hold square brackets and control characters.
        self._rich.print(Text(head, style="bold") + Text(printable(text)))


def printable(text: str) -> str:
    """Text without control characters, so that data cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def one_line(text: str, limit: int = 160) -> str:
    """White space folded, cut at ``limit`` characters."""
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 3] + "..."


def count(number: float) -> str:
    """``1234567`` as ``1.23 M``."""
    for size, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (1e3 if suffix == ' k' else size):.3g}{suffix}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """``3725`` as ``1h02m``, ``125`` as ``2m05s``, ``5`` as ``5s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def significant(value: Any, digits: int = 4) -> str:
    """A number with four significant digits."""
    return f"{float(value):.{digits}g}"

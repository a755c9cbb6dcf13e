"""What a user sees: facts at the start, a line now and then, a summary at the end. Rank 0 only."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO


class Console:
    """Labelled lines, styled on a terminal and plain in a pipe."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        from rich.console import Console as RichConsole

        self.enabled = enabled
        self._rich = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)

    def fact(self, label: str, text: str) -> None:
        """``label    text``, the label in bold; further lines of the text stand under its first."""
        self._print(f"{label:<9}", text.replace("\n", f"\n{'':<9}"))

    def spans(self, label: str, spans: Sequence[tuple[str, bool]]) -> None:
        """One line of text whose marked pieces are green on a terminal and in guillemets elsewhere."""
        if not self.enabled or not spans:
            return
        from rich.text import Text

        line = Text().append(f"{label:<9}", style="bold")
        for text, is_marked in spans:
            shown = printable(middle_left_out(text, 160 if is_marked else 60))
            if is_marked and not self._rich.is_terminal:
                shown = f"\u00ab{shown}\u00bb"
            line.append(shown, style="bold green" if is_marked else "dim")
        self._rich.print(line)

    def progress(self) -> Callable[[str, int, int], None]:
        """What shows the progress of long work here; on ranks that print nothing, what swallows it."""
        from automodel_recipes.loggers.progress import ProgressDisplay

        return ProgressDisplay(self._rich, self.fact) if self.enabled else lambda what, done, total: None

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
        self._rich.print(Text().append(head, style="bold").append(printable(text)))


def printable(text: str) -> str:
    """Text without control characters, so that data cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def middle_left_out(text: str, limit: int) -> str:
    """White space folded (a blank at either end stays), what exceeds ``limit`` characters left out in the middle."""
    folded = re.sub(r"\s+", " ", text)
    half = (limit - 5) // 2
    return folded if len(folded) <= limit else f"{folded[:half]} ... {folded[-half:]}"


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

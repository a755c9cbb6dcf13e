"""Long work before, between and after the steps: a bar on a terminal, a line now and then in a pipe."""

import time
from collections.abc import Callable
from typing import Any

from automodel_recipes.loggers.console import duration

_SHOWN_AFTER_S = 0.5
_LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Shows what leaves tell by ``watch_progress``: the work in a word, and how much of how much is done.

    Args:
        rich_console: where bars go.
        say: prints a labelled line, where there is no terminal.
    """

    def __init__(self, rich_console: Any, say: Callable[[str, str], None]) -> None:
        self._console, self._say = rich_console, say
        self._what = ""
        self._started = self._last_line = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note; short work is never shown."""
        now = time.monotonic()
        if what != self._what or done < self._done:
            self._end_bar()
            self._what, self._started, self._last_line = what, now, now
        self._done = done
        if self._console.is_terminal:
            self._update_bar(done, total, now)
        elif now - self._last_line >= _LINE_EVERY_S or (done >= total and self._last_line > self._started):
            self._last_line = now
            self._say(what, f"{100 * done / total:.0f} %, {_times(now - self._started, done, total)}")
        if done >= total:
            self._end_bar()
            self._what = ""

    _done = 0

    def _update_bar(self, done: int, total: int, now: float) -> None:
        if self._bar is None and now - self._started >= _SHOWN_AFTER_S and done < total:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._what, total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _times(elapsed: float, done: int, total: int) -> str:
    if done >= total:
        return duration(elapsed)
    return f"{duration(elapsed)}, eta {duration(elapsed / max(done, 1) * (total - done))}"

"""How far a long piece of work is, for whoever wants to show it: nobody by default."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Watcher = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many pieces are done."""

_EVERY_S = 0.1
_watcher: ContextVar[Watcher | None] = ContextVar("automodel_data_progress", default=None)


@contextmanager
def watch_progress(watcher: Watcher) -> Iterator[None]:
    """Within the block ``watcher`` is told how far this thread's work is, about ten times a second."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def counted(items: Iterable[T], what: str, total: int, *, size: Callable[[T], int] | None = None) -> Iterator[T]:
    """The items as they are, told to the watcher as they pass.

    Args:
        items: what is worked on.
        what: the work in a word, such as ``tokenise``.
        total: how much there is.
        size: how much is done with an item; None counts items.
    """
    watcher, done, last = _watcher.get(), 0, 0.0
    for item in items:
        yield item
        done += 1 if size is None else size(item)
        if watcher is not None and (now := time.monotonic()) - last >= _EVERY_S:
            last = now
            watcher(what, min(done, total), total)
    if watcher is not None and total:
        watcher(what, total, total)

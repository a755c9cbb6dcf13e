"""What both kinds of lease do about a holder that may be alive: watch its heartbeat, and say who it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from automodel_ckpt.errors import LeaseHeld

logger = logging.getLogger(__name__)

BEAT_S = 5.0
WATCH_S = 12.0
"""Longer than two beats: a live holder shows itself while it is watched."""


def wait_for_silence(
    place: object,
    holder: dict,
    read: Callable[[], dict | None],
    held_error: Callable[[dict], LeaseHeld],
    *,
    watch_s: float,
    every_s: float,
) -> None:
    """Return once the holder has shown no heartbeat for ``watch_s``, or has gone.

    Watched on our own clock, so that clock skew between machines does not matter.

    Raises: LeaseHeld: ``held_error`` of the holder that showed itself.
    """
    logger.info("%s was held by host %s; waiting %g s for a sign of life", place, holder.get("host"), watch_s)
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(every_s)
        current = read()
        if current is None:
            return
        if current != holder:
            raise held_error(current)


def describe(holder: dict | None) -> str:
    """The holder in words."""
    return f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"

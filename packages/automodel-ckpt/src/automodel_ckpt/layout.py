"""Names on disk: what a directory of checkpoints looks like.

::

    run/
      LATEST  BEST                hints for people; readers look at the directories
      .lock                       lease of the process that writes here
      step-00001200/              complete, or it would not have this name
        MANIFEST.json             every file, block hash, tensor and part
        train.json  rank-00000.json  model.json  optim.json
        model/shard-00000-of-00002.safetensors
      .saving-00001300-<run>/     being written
      .trash-<name>-<run>/        being deleted
"""

from __future__ import annotations

import re

MANIFEST = "MANIFEST.json"
LATEST, BEST, LOCK = "LATEST", "BEST", ".lock"
SAVING, TRASH = ".saving-", ".trash-"

_STEP = re.compile(r"step-(\d{8,18})")
_SECTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def step_name(step: int) -> str:
    """``12`` -> ``"step-00000012"``."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a directory name, or None if it is not one of ours."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def check_section(name: str) -> str:
    """``name`` if it can be a section of a checkpoint.

    Raises: ValueError: it is not a plain word.
    """
    if not isinstance(name, str) or not _SECTION.fullmatch(name) or name.upper() == "MANIFEST":
        raise ValueError(
            f"section name {name!r}: allowed are letters, digits, '_' and '-', starting with a letter. Rename the key."
        )
    return name


def shard_name(section: str, index: int, count: int) -> str:
    """``model/shard-00000-of-00008.safetensors``."""
    return f"{section}/shard-{index:05d}-of-{count:05d}.safetensors"


def saving_name(step: int, run_id: str) -> str:
    """The staging directory of one save."""
    return f"{SAVING}{step:08d}-{run_id}"


def trash_name(name: str, run_id: str) -> str:
    """Where a directory goes before it is deleted."""
    return f"{TRASH}{name.lstrip('.')}-{run_id}"

"""A directory that appears complete or not at all: adapters, exports and merged models are written through it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from automodel_ckpt.errors import AlreadyExists


@contextlib.contextmanager
def staged_directory(target: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh directory beside ``target`` that takes its name when the block ends without an error.

    Every file is made durable first. With ``overwrite`` an existing directory is moved aside, replaced, and then
    deleted; a crash between the two renames leaves both under ``.saving-`` and ``.trash-`` names beside the target.

    Raises: AlreadyExists: the target exists and ``overwrite`` is false.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    staging = target.parent / f".saving-{target.name}-{token}"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        _swap(staging, target, target.parent / f".trash-{target.name}-{token}")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise AlreadyExists if something that may not be replaced has the name."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise AlreadyExists(f"{target} exists and is not a directory. Choose another name.")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise AlreadyExists(f"{target} exists and is not empty. Choose another directory, or allow overwriting it.")


def _swap(staging: Path, target: Path, trash: Path) -> None:
    if target.exists():
        os.rename(target, trash)
    os.rename(staging, target)
    _sync(target.parent)
    if trash.exists():
        shutil.rmtree(trash)


def sync_tree(root: Path) -> None:
    """Make every file and directory below ``root`` durable, deepest first."""
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            _sync(Path(folder, file))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

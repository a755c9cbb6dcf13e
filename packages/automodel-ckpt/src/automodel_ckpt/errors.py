"""Every error of this package: what was given, what is allowed, what to do."""

from __future__ import annotations

import os


class CheckpointError(RuntimeError):
    """Base class of all checkpoint errors; a command line exits with ``exit_code``."""

    exit_code = 6


class SaveFailed(CheckpointError):
    """A save did not happen; the previous checkpoints are untouched."""


class LoadFailed(CheckpointError):
    """A load did not happen for a reason other than the checkpoint's contents."""


class AlreadyExists(CheckpointError):
    """A complete checkpoint, or a foreign directory, is where the new one should go."""


class LeaseHeld(CheckpointError):
    """Another live process writes checkpoints in the same directory."""


class CheckpointNotFound(CheckpointError):
    """There is no complete checkpoint at the path."""


class CorruptCheckpoint(CheckpointError):
    """Bytes on disk are not those that were written.

    ``file``, ``tensor`` and ``offset`` (bytes into the file) say where, as far as known.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.tensor = tensor
        self.offset = offset


class UnsafeFile(CheckpointError):
    """A file is refused unread: a path that leaves the directory, a pickle, a link, a device, an absurd header."""


class StateMismatch(CheckpointError):
    """Checkpoint and live objects differ; ``differences`` lists each one."""

    def __init__(self, message: str, *, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class UnsupportedState(CheckpointError):
    """A value in the state cannot be stored without pickle."""


class VerificationFailed(CheckpointError):
    """An exported model read back through Transformers or PEFT is not the model in memory."""

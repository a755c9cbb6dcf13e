"""The directory of a run: where it lies, whether it is free, and what is resumed from it."""

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path

from automodel_recipes.errors import RecipeError, RunDirectoryError

_MARKS = ("run.json", "metrics.jsonl", "LATEST")


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory and the checkpoint that the run starts from, if any."""

    path: Path
    resume_from: Path | None = None

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def final(self) -> Path:
        """The finished weights in Hugging Face or PEFT format."""
        return self.path / "final"


def default_run_path(name: str, *, seconds: int) -> Path:
    """``runs/NAME-20260131-235959``: a fresh place for a run whose YAML names none, from seconds since the epoch."""
    stamp = datetime.datetime.fromtimestamp(seconds).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"


def holds_run(path: Path) -> bool:
    """Whether ``path`` already holds a run's records or checkpoints."""
    return any((path / mark).exists() for mark in _MARKS) or any(path.glob("step-*"))


def choose_run_directory(path: Path, resume: str) -> RunDirectory:
    """Decide where a run goes and what it resumes from, without touching the disk.

    Args:
        path: ``checkpoint.checkpoint_dir``.
        resume: ``"never"`` (a directory with a run in it is refused), ``"auto"`` (go on from its newest complete
            checkpoint, or start afresh where there is none), or a checkpoint: ``RUN``, ``RUN@best``, ``RUN@1200`` or
            its path.

    Raises:
        RunDirectoryError: the directory holds another run, is a file, or the checkpoint to resume is absent.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise RunDirectoryError(
            f"checkpoint.checkpoint_dir {path} is a URL; a run's directory is on a file system. Give a path. To start "
            "from a checkpoint in an object store, give its URL in checkpoint.restore_from."
        )
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; checkpoint.checkpoint_dir must be a directory. Choose another.")
    if resume == "never":
        if path.is_dir() and holds_run(path):
            raise RunDirectoryError(
                f"{path} already holds a run. Go on with it by --resume auto, "
                f"or start a new one by checkpoint.checkpoint_dir=ANOTHER_PATH."
            )
        return RunDirectory(path)
    if resume == "auto":
        from automodel_ckpt import latest

        return RunDirectory(path, latest(path) if path.is_dir() else None)
    from automodel_recipes.places import checkpoint_path

    try:
        source = Path(checkpoint_path(resume))
    except RecipeError as error:
        raise RunDirectoryError(f"--resume {error}") from None
    if not source.is_dir():
        raise RunDirectoryError(
            f"--resume {resume}: no such checkpoint directory. Give a run, RUN@best, RUN@1200, a step-* directory, "
            "or auto."
        )
    _refuse_rewinding(path, source)
    return RunDirectory(path, source)


def _refuse_rewinding(path: Path, source: Path) -> None:
    """A run's own older checkpoint leads to steps that are saved already, and a step is saved once."""
    newer = sorted(step.name for step in path.glob("step-*") if step.name > source.name)
    if source.parent.resolve() == path.resolve() and newer:
        raise RunDirectoryError(
            f"{path} holds {', '.join(newer)} after {source.name}. Go on from there into another directory by "
            "checkpoint.checkpoint_dir=ANOTHER_PATH, or delete what comes after it."
        )


def check_writable(path: Path) -> None:
    """Create the directory and prove that a file can be written into it.

    Raises: RunDirectoryError: naming the path and the operating system's reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write into {path}: {error.strerror}. Choose a writable checkpoint.checkpoint_dir."
        ) from error

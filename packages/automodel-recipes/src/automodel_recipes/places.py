"""What a PATH argument may be: a run, one of its checkpoints, an adapter, a model directory, or a hub id."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from automodel_recipes.early_stopping import is_higher_better
from automodel_recipes.errors import UnusableInputError


@dataclass(frozen=True)
class Place:
    """Where weights lie: ``kind`` is ``adapter``, ``model``, ``checkpoint`` or ``hub``."""

    kind: str
    path: str
    run: Path | None = None

    @property
    def base_model(self) -> str | None:
        """The base model that an adapter names."""
        if self.kind != "adapter":
            return None
        config = json.loads((Path(self.path) / "adapter_config.json").read_text(encoding="utf-8"))
        return config.get("base_model_name_or_path")


_MARKED = re.compile(r"(.+)@(best|latest|\d+)", re.DOTALL)


def checkpoint_path(argument: str) -> str:
    """The checkpoint that ``RUN``, ``RUN@best``, ``RUN@latest`` or ``RUN@1200`` means; other text as it is.

    Raises: UnusableInputError: the run has no such checkpoint; lists those there.
    """
    marked = _MARKED.fullmatch(argument)
    if marked and not Path(argument).exists():
        if not Path(marked[1]).is_dir():
            raise UnusableInputError(
                f"{argument}: no directory {marked[1]}. Give a run, and after the @ which checkpoint."
            )
        return str(_checkpoint(Path(marked[1]), marked[2]))
    path = Path(argument)
    if not (path / "MANIFEST.json").is_file() and next(path.glob("step-*"), None) is not None:
        return str(_checkpoint(path, "latest"))
    return argument


def find_place(argument: str) -> Place:
    """Resolve ``RUN``, ``RUN@best``, ``RUN@latest``, ``RUN@1200``, a directory, or a hub id.

    A run stands for its finished weights, and while it has none, for its newest checkpoint.

    Raises: UnusableInputError: nothing usable there; says what was looked for.
    """
    marked = _MARKED.fullmatch(argument)
    where, mark = (marked[1], marked[2]) if marked else (argument, "")
    path = Path(where)
    if not path.is_dir():
        if not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", argument) and not argument.startswith("."):
            return Place("hub", argument)
        raise UnusableInputError(
            f"{argument}: no such directory. Give a run, a checkpoint, an adapter or a model directory."
        )
    if mark:
        return Place("checkpoint", str(_checkpoint(path, mark)), run=path)
    return _directory(path)


def _directory(path: Path) -> Place:
    for folder in (path, path / "final", path / "hf"):
        if (folder / "adapter_config.json").is_file():
            return Place("adapter", str(folder), run=path if folder != path else None)
        if (folder / "config.json").is_file():
            return Place("model", str(folder), run=path if folder != path else None)
    if (path / "MANIFEST.json").is_file():
        return Place("checkpoint", str(path), run=path.parent)
    return Place("checkpoint", str(_checkpoint(path, "latest")), run=path)


def _checkpoint(run: Path, mark: str) -> Path:
    from automodel_ckpt import best, latest

    found: Path | None
    if mark.isdigit():
        step = run / f"step-{int(mark):08d}"
        found = step if step.is_dir() else None
    else:
        metric = _followed_metric(run)
        mode = "max" if metric.startswith("-") else "min"
        found = best(run, metric.removeprefix("-"), mode=mode) if mark == "best" else latest(run)
    if found is None:
        there = ", ".join(sorted(p.name for p in run.glob("step-*"))) or "none"
        raise UnusableInputError(f"{run} has no checkpoint {mark!r}. Checkpoints there: {there}.")
    return Path(found)


def _followed_metric(run: Path) -> str:
    """The metric that the run's own record says its best checkpoint goes by; the loss of ``val`` by default."""
    try:
        config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return "val"
    stopping = config.get("early_stopping") or {}
    higher = stopping.get("mode") == "max" or ("mode" not in stopping and is_higher_better(stopping.get("metric", "")))
    followed = ("-" if higher else "") + stopping.get("metric", "val/loss") if stopping else "val"
    return str((config.get("checkpoint") or {}).get("best_metric_key") or followed)

"""Curves of one run or several as a picture: a panel a metric."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from automodel_recipes.errors import UnusableInputError
from automodel_recipes.loggers.plot import smooth

Series = Mapping[str, Mapping[int, float]]

_PANELS: Sequence[tuple[str, Sequence[str]]] = (
    ("loss per supervised token (nats)", ("train/loss", "val/loss")),
    ("learning rate", ("train/lr",)),
    ("gradient norm", ("train/grad_norm",)),
    ("tokens per second", ("train/tokens_per_s", "train/label_tokens_per_s")),
    ("validation token accuracy", ("val/token_accuracy",)),
    ("peak memory (GiB)", ("train/peak_memory_gib",)),
)
_COLORS = ("#1f5a9c", "#c4572a", "#3d7f4f", "#7c4d9e", "#8a6d1f", "#444b54", "#b03060", "#1f8a8a")
_NOISY = "train/loss"


def draw(runs: Mapping[str, Series], *, metrics: Sequence[str] = (), form: str = "png") -> bytes:
    """Draw runs over each other.

    Args:
        runs: name -> its series.
        metrics: names such as ``val/loss``, a panel each; by default loss, learning rate, gradient norm, speed,
            accuracy and memory, as far as they were logged.
        form: ``png`` or ``svg``.

    Raises: UnusableInputError: a metric that no run has, or nothing to draw; lists what there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(runs, metrics)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, names) in enumerate(panels):
        _panel(figure.add_subplot(rows, columns, number + 1), title, names, runs)
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=110)
    return picture.getvalue()


def _panels(runs: Mapping[str, Series], metrics: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    known = sorted({name for series in runs.values() for name in series})
    absent = [name for name in metrics if name not in known]
    if absent or not known:
        there = ", ".join(known) or "none"
        what = f"no run has logged {', '.join(absent)}" if absent else "nothing is logged yet"
        raise UnusableInputError(f"{what}. Logged metrics: {there}.")
    if metrics:
        return [(name, (name,)) for name in metrics]
    return [(title, names) for title, names in _PANELS if set(names) & set(known)]


def _panel(axes, title: str, names: Sequence[str], runs: Mapping[str, Series]) -> None:
    colors = iter(_COLORS * 4)
    for run, series in runs.items():
        for name in names:
            points = sorted(series.get(name, {}).items())
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            color, label = next(colors), name if len(runs) == 1 else f"{run} {name}" if len(names) > 1 else run
            if name == _NOISY and len(values) > 20:
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
                axes.plot(steps, smooth(values), color=color, linewidth=1.8, label=f"{label}, smoothed")
            else:
                axes.plot(steps, values, color=color, linewidth=1.6, marker="o" if len(values) < 30 else None, ms=3)
                axes.lines[-1].set_label(label)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def write(picture: bytes, path: Path) -> None:
    """Write a picture; its directory has to exist.

    Raises: UnusableInputError: it cannot be written.
    """
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise UnusableInputError(f"cannot write {path}: {error.strerror}. Choose another -o.") from error

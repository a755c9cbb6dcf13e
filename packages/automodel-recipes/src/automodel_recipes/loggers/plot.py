"""Loss curves as a PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_loss(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw training and validation loss against the step.

    Args:
        rows: rows of ``metrics.jsonl``.
        path: the PNG to write, replaced if there.

    Returns: whether there was anything to draw.
    """
    train = _series(rows, "train", "loss")
    val = _series(rows, "val", "loss")
    if not train and not val:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*sorted(train.items()), strict=True)
        axes.plot(steps, losses, color="#9ab7d8", linewidth=1, label="train")
        axes.plot(steps, smooth(losses), color="#1f5a9c", linewidth=2, label="train, smoothed")
    if val:
        steps, losses = zip(*sorted(val.items()), strict=True)
        axes.plot(steps, losses, color="#c4572a", marker="o", linewidth=1.5, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss per supervised token (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True


def _series(rows: list[dict[str, Any]], kind: str, key: str) -> dict[int, float]:
    """Step -> value; a step that was run again after a resume keeps its last value."""
    return {row["step"]: row[key] for row in rows if row.get("kind") == kind and isinstance(row.get(key), int | float)}


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        smoothed.append(total / norm)
    return smoothed

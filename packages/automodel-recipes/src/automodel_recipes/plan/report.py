"""A plan as lines for people and as JSON for programs."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from automodel_recipes.gpus import Gpu
from automodel_recipes.loggers.console import count, duration
from automodel_recipes.memory.live import Peak
from automodel_recipes.plan.estimate import Estimate, Traffic, fits_on, static_rows, usable_bytes
from automodel_recipes.plan.make import Plan
from automodel_recipes.plan.timing import StepTime

_MOST_SHAPES = 16


def plan_lines(
    plan: Plan, *, name: str, gpu: Gpu | None, time: StepTime | None, shapes: bool = False
) -> Iterator[tuple[str, str]]:
    """``(label, text)`` lines; a label that repeats is left empty."""
    ranks = "rank" if plan.world_size == 1 else "ranks"
    yield "plan", f"{name} on {plan.world_size:,} {ranks}" + (f": {plan.layout}" if plan.layout else "")
    if plan.estimate is not None:
        yield from _estimate_lines(plan, plan.estimate, gpu)
        if time is not None:
            yield "time", f"{duration_or_ms(time.seconds)} a step, {count(time.tokens_per_s)} tokens/s: {time.source}"
        if shapes:
            yield from _labelled("shapes", _shape_lines(plan.estimate))
    yield from _labelled("problem", plan.problems)


def plan_json(plan: Plan, *, gpu: Gpu | None, time: StepTime | None) -> dict[str, Any]:
    """Everything that `plan_lines` says, in bytes and seconds."""
    record: dict[str, Any] = {
        "ok": not plan.problems,
        "world_size": plan.world_size,
        "layout": plan.layout,
        "problems": plan.problems,
    }
    if (estimate := plan.estimate) is None:
        return record
    peak = estimate.peak()
    return record | {
        "num_parameters": estimate.trace.num_parameters,
        "num_trainable": estimate.trace.num_trainable,
        "batch": {
            "rows": estimate.rows,
            "tokens_per_row": estimate.tokens,
            "rows_from": plan.rows.source if plan.rows else "",
            "accumulation": plan.accumulation,
            "dp_size": plan.dp_size,
        },
        "memory": {"static": dict(estimate.static), "peak": {"total": peak.total, "parts": dict(peak.parts)}},
        "fits_on": [card.name for card in fits_on(peak)],
        "gpu": None if gpu is None else {"name": gpu.name, "usable_bytes": int(usable_bytes(gpu))},
        "proposed_micro_batch": plan.proposed_rows,
        "traffic": [vars(row) for row in estimate.traffic],
        "shapes": {name: {"whole": whole, "local": local} for name, (whole, local) in estimate.trace.shapes.items()},
        "time": None if time is None else vars(time),
    }


def size(number: float) -> str:
    """Bytes as ``12.3 GiB`` or ``4.1 MiB``."""
    if number >= 2**30 / 10:
        return f"{number / 2**30:.2f} GiB"
    return f"{number / 2**20:.2f} MiB"


def duration_or_ms(seconds: float) -> str:
    """``0.42 s`` below a minute, else as `duration`."""
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)


def peak_text(peak: Peak) -> str:
    """The parts of a peak, largest first."""
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size(number)}" for name, number in parts if number >= peak.total / 1000)


def _estimate_lines(plan: Plan, estimate: Estimate, gpu: Gpu | None) -> Iterator[tuple[str, str]]:
    trace = estimate.trace
    yield (
        "model",
        f"{type(trace.model_config).__name__.removesuffix('Config')}, {count(trace.num_parameters)} parameters, "
        f"trained {count(trace.num_trainable)}",
    )
    source = f" ({plan.rows.source})" if plan.rows is not None else ""
    yield (
        "batch",
        f"{estimate.rows} x {estimate.tokens:,} tokens{source}, {plan.accumulation} accumulation x {plan.dp_size} dp",
    )
    yield from _labelled("memory", [f"{label:<17}{size(number):>12}" for label, number in static_rows(estimate)])
    peak = estimate.peak()
    yield "", f"{'peak':<17}{size(peak.total):>12}  {peak_text(peak)}"
    fitting = fits_on(peak)
    names = ", ".join(card.name for card in fitting) or "no known GPU"
    yield "fits on", names
    if gpu is not None:
        yield "micro", _micro_batch_line(plan, estimate, gpu)
    yield from _labelled("traffic", [_traffic_line(row) for row in estimate.traffic] or ["none"])


def _micro_batch_line(plan: Plan, estimate: Estimate, gpu: Gpu) -> str:
    room = f"{size(usable_bytes(gpu))} usable on {gpu.name}"
    if not plan.proposed_rows:
        return f"not one row of {estimate.tokens:,} tokens fits ({size(estimate.peak(1).total)} of {room})"
    rows = plan.proposed_rows
    return f"up to step_scheduler.local_batch_size={rows} fits ({size(estimate.peak(rows).total)} of {room})"


def _traffic_line(row: Traffic) -> str:
    return f"{row.op} over {row.axis} ({row.ranks} ranks): {row.calls} calls, {size(row.sent_bytes)} sent a step"


def _shape_lines(estimate: Estimate) -> list[str]:
    """One line for all layers of a kind."""
    alike = Counter((re.sub(r"\.\d+\.", ".*.", name), *shapes) for name, shapes in estimate.trace.shapes.items())
    lines = [
        f"{name} {list(whole)}" + (f" -> {list(local)}" if local != whole else "") + (f"  x {n}" if n > 1 else "")
        for (name, whole, local), n in alike.items()
    ]
    more = len(lines) - _MOST_SHAPES
    return lines[:_MOST_SHAPES] + ([f"and {more} more; all of them with --json"] if more > 0 else [])


def _labelled(label: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    for index, line in enumerate(lines):
        yield (label if index == 0 or label == "problem" else "", line)

"""The facts on the screen at the start of a run and its summary at the end."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from automodel_recipes.loggers.console import duration, significant
from automodel_recipes.start_facts import batch_line, config_line, device_line, model_line

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


def start_screen(r: "BaseRecipe") -> None:
    """Config, model, device, data and batch facts, and the first row with what is trained marked."""
    fact = r.console.fact
    fact("config", config_line(r))
    fact("model", model_line(r))
    fact("device", device_line(r))
    for report in r.built.reports:
        fact("edit", str(report))
    fact("data", str(r.data_facts))
    fact("batch", batch_line(r))
    fact("memory", r.memory.start_line())
    fact("output", str(r.run_dir.path))
    r.console.spans("sample", r.first_row)


def end_screen(r: "BaseRecipe", summary: "TrainSummary", final: Path | None) -> None:
    """Steps, time, losses, exact match before and after, files, and commands that can be run next."""
    if not r.parallel.is_main:
        return
    r.console.blank()
    parts = [f"{summary.steps} steps in {duration(summary.seconds)}"]
    parts += [f"{name} loss {significant(m.loss)}" for name, m in summary.validation.items()]
    if r.early_stopping is not None and r.early_stopping.best is not None:
        followed = r.early_stopping
        parts.append(f"best {followed.metric} {significant(followed.best)} @ step {followed.best_step}")
    if summary.exact_match:
        before, after = summary.exact_match.get("start"), summary.exact_match.get("end")
        parts.append("exact match " + " -> ".join(f"{100 * x:.1f} %" for x in (before, after) if x is not None))
    parts.append(r.memory.end_text())
    r.console.fact("done", ", ".join(parts))
    if summary.phases:
        r.console.fact("time", ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in summary.phases.items()))
    if final is not None:
        kind = "adapter" if r.built.peft is not None else "model"
        r.console.fact(kind, str(final))
        r.console.fact("report", f"{r.run_dir.path / 'report.html'}, numbers in {r.run_dir.metrics.name}")
        for command in next_commands(
            r.run_dir.path,
            is_adapter=r.built.peft is not None,
            takes_images=r.processor is not None,
            writes_text=r.writes_text,
        ):
            r.console.fact("next", command)


def next_commands(run: Path, *, is_adapter: bool, takes_images: bool = False, writes_text: bool = True) -> list[str]:
    """Commands that work on a finished run; they can be pasted into a shell, but for the name of a picture."""
    place = shlex.quote(str(run))
    commands = [f"automodel-recipes chat {place}", f"automodel-recipes generate {place} --prompt 'Hello'"]
    if not writes_text:
        commands = [f"automodel-recipes runs show {place}"]
    elif takes_images:
        commands = [f"automodel-recipes {verb} {place} --image PICTURE" for verb in ("chat", "generate")]
        commands[1] += " --prompt 'What is this?'"
    if is_adapter:
        commands.append(f"automodel-recipes ckpt merge {place} -o {shlex.quote(f'{run}-merged')}")
    return commands

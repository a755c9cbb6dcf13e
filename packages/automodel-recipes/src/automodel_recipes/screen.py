"""The facts on the screen at the start of a run and its summary at the end."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_recipes.loggers.console import count, duration, significant

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


def start_screen(r: "BaseRecipe") -> None:
    """Config, model, device, data, batch and memory facts, one line each."""
    fact = r.console.fact
    fact("config", _config_line(r))
    fact("model", _model_line(r))
    fact("device", f"{r.parallel.world_size}x {r.device.type}" + _layout(r))
    for report in r.built.reports:
        fact("edit", str(report))
    fact("data", _data_line(r))
    fact("batch", _batch_line(r))
    fact("memory", r.memory.start_line())
    fact("output", str(r.run_dir.path))
    r.console.blank()


def end_screen(r: "BaseRecipe", summary: "TrainSummary", final: Path | None) -> None:
    """Steps, time, losses, exact match before and after, files, and commands that can be run next."""
    if not r.parallel.is_main:
        return
    r.console.blank()
    parts = [f"{summary.steps} steps in {duration(summary.seconds)}"]
    parts += [f"{name} loss {significant(m.loss)}" for name, m in summary.validation.items()]
    if summary.exact_match:
        before, after = summary.exact_match.get("start"), summary.exact_match.get("end")
        parts.append("exact match " + " -> ".join(f"{100 * x:.1f} %" for x in (before, after) if x is not None))
    parts.append(r.memory.end_text())
    r.console.fact("done", ", ".join(parts))
    if final is not None:
        kind = "adapter" if r.built.peft is not None else "model"
        r.console.fact(kind, str(final))
        r.console.fact("report", f"{r.run_dir.path / 'report.html'}, numbers in {r.run_dir.metrics.name}")
        for command in next_commands(
            r.run_dir.path, is_adapter=r.built.peft is not None, takes_images=r.processor is not None
        ):
            r.console.fact("next", command)


def next_commands(run: Path, *, is_adapter: bool, takes_images: bool = False) -> list[str]:
    """Commands that work on a finished run; they can be pasted into a shell, but for the name of a picture."""
    place = shlex.quote(str(run))
    commands = [f"automodel-recipes chat {place}", f"automodel-recipes generate {place} --prompt 'Hello'"]
    if takes_images:
        commands = [f"automodel-recipes generate {place} --image PICTURE --prompt 'What is this?'"]
    if is_adapter:
        commands.append(f"automodel-recipes ckpt merge {place} -o {shlex.quote(f'{run}-merged')}")
    return commands


def _config_line(r: "BaseRecipe") -> str:
    return f"{r.config.source().file}, {len(r.config)} sections"


def _model_line(r: "BaseRecipe") -> str:
    built = r.built
    dtype = str(next(built.model.parameters()).dtype).removeprefix("torch.")
    share = 100 * built.num_trainable / max(built.num_parameters, 1)
    name = getattr(built.model.config, "_name_or_path", "") or built.model.config.model_type
    attention = getattr(built.model.config, "_attn_implementation", None)
    return (
        f"{name} {dtype}, {count(built.num_parameters)} params, trainable {count(built.num_trainable)} ({share:.3g} %)"
        + (f", attention {attention}" if attention else "")
    )


def _layout(r: "BaseRecipe") -> str:
    return "" if r.parallel.world_size == 1 else f" | dp {r.parallel.dp_size} of {r.parallel.world_size} processes"


def _data_line(r: "BaseRecipe") -> str:
    facts = r.data_facts
    supervised = 100 * facts.num_label_tokens / max(facts.num_tokens, 1)
    seen = "" if facts.is_complete else f" (first {facts.num_rows_seen:,} rows)"
    rows = "a stream of" if facts.num_rows is None else f"{facts.num_rows:,}"
    return (
        f"train {rows} rows, {count(facts.num_tokens)} tokens, supervised {supervised:.1f} %, "
        f"longest {facts.max_length}{seen}"
    )


def _batch_line(r: "BaseRecipe") -> str:
    scheduler: Any = r.step_scheduler
    per_epoch = "" if scheduler.steps_per_epoch is None else f"{scheduler.steps_per_epoch} steps/epoch, "
    accumulation = -(-scheduler.global_batch_size // (scheduler.local_batch_size * r.parallel.dp_size))
    return (
        f"{scheduler.local_batch_size} local x {accumulation} accumulation x {r.parallel.dp_size} dp = "
        f"{scheduler.global_batch_size} | {per_epoch}{scheduler.total_steps} in all"
    )

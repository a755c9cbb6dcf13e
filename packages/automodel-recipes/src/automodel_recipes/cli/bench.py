"""``bench CONFIG``."""

import json
import os
from pathlib import Path
from typing import Any

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, output_options, read_config


@click.command(context_settings=OVERRIDES_AS_ARGUMENTS, options_metavar="[OPTIONS]")
@config_arguments
@click.option("--warmup", default=3, type=click.IntRange(0), metavar="N", help="Steps before the clock runs; 3.")
@click.option("--steps", default=10, type=click.IntRange(1), metavar="N", help="Timed steps; 10.")
@click.option("--synthetic", is_flag=True, help="Random weights and ids: neither weights nor data are read.")
@click.option("--name", metavar="NAME", help="Name of the row; the configuration's by default.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Append the row to these JSON lines.")
@click.option("--compare", type=click.Path(path_type=Path), metavar="FILE", help="Compare with FILE's last row alike.")
@click.option("--fail-ratio", type=float, metavar="R", help="With --compare: fail below R of its speed; 0.97.")
@click.option("--nproc-per-node", default=1, metavar="N", type=click.IntRange(1), help="Processes on this machine.")
@output_options
@click.pass_context
def bench(
    context: click.Context,
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    warmup: int,
    steps: int,
    synthetic: bool,
    name: str | None,
    output: Path | None,
    compare: Path | None,
    fail_ratio: float | None,
    nproc_per_node: int,
    as_json: bool,
) -> int:
    """Time CONFIG's training steps: tokens/s, MFU, memory.

    Example: automodel-recipes bench llama_lora.yaml --steps 20 --output bench.jsonl
    """
    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust_remote_code)
    if fail_ratio is not None and compare is None:
        raise click.UsageError("--fail-ratio needs --compare FILE")
    from automodel_recipes.launch.local import launch, under_launcher
    from automodel_recipes.validation import check

    check(node, files=not synthetic, nproc_per_node=nproc_per_node)
    if nproc_per_node > 1 and not under_launcher():
        return launch(context.find_root().obj, nproc_per_node)
    from automodel_recipes.benchmark import BenchOptions

    options = BenchOptions(name=name or Path(config).stem, warmup=warmup, steps=steps, synthetic=synthetic)
    row = _measure(node, options, output)
    if row is None:
        return 0
    from automodel_recipes.bench_compare import append_row, require_speed
    from automodel_recipes.bench_compare import compare as compare_rows

    comparison = None if compare is None else compare_rows(row, compare)
    if output is not None:
        append_row(output, row)
    if as_json:
        speed = {} if comparison is None else {"speed_ratio": comparison.speed, "memory_ratio": comparison.memory}
        click.echo(json.dumps(row | speed))
    else:
        for label, text in _lines(row):
            click.echo(f"{label:<9}{text}")
        if comparison is not None:
            click.echo(f"compared {comparison.line()}")
    if comparison is not None:
        require_speed(comparison, 0.97 if fail_ratio is None else fail_ratio)
    return 0


def _measure(node: Any, options: Any, output: Path | None) -> dict[str, Any] | None:
    """The row; one that says what went wrong is written as well, so that a ladder of benchmarks has no silent gap."""
    from automodel_recipes.bench_compare import append_row
    from automodel_recipes.benchmark import run_benchmark
    from automodel_recipes.cli.errors import exit_code

    try:
        return run_benchmark(node, options)
    except Exception as error:
        if output is not None and os.environ.get("RANK", "0") == "0":
            status = "oom" if exit_code(error) == 3 else "failed"
            append_row(output, {"name": options.name, "status": status, "reason": f"{type(error).__name__}: {error}"})
        raise


def _lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    from automodel_recipes.loggers.console import count
    from automodel_recipes.plan.report import size

    memory = row["memory"]
    measured, what = memory["measured_bytes"], memory["measured"]
    peak = f"{size(measured)} {what}" if measured else f"{size(memory['resident_bytes'])} resident"
    mfu = "not known for this device" if row["mfu_percent"] is None else f"{row['mfu_percent']:.1f} %"
    against = "" if row["peak_tflops"] is None else f" of {row['peak_tflops']['value']:.3g} TFLOP/s"
    step = row["step_time_s"]
    return [
        ("bench", f"{row['name']} on {row['world_size']}x {row['device_name']}, {row['steps']} steps"),
        ("model", f"{count(row['num_parameters'])} parameters, trained {count(row['num_trainable'])}, {row['dtype']}"),
        ("step", f"{step['median']:.4g} s ({step['min']:.4g} to {step['max']:.4g}), first {row['first_step_s']:.4g} s"),
        ("speed", f"{row['tokens_per_s']:,} tokens/s, {row['label_tokens_per_s']:,} supervised"),
        ("MFU", f"{mfu}{against}; {row['mfu_formula']}"),
        ("memory", f"peak {peak}"),
    ]

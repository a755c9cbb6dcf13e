"""``runs ...``: what runs have written down."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automodel_recipes.cli.arguments import output_options

if TYPE_CHECKING:
    from automodel_recipes.runs.folder import RunFolder


@click.group()
def runs() -> None:
    """List, compare, draw and report runs.

    Example: automodel-recipes runs report runs/demo_lora
    """


@runs.command()
@click.argument("root", default="runs", type=click.Path(path_type=Path))
@output_options
def ls(root: Path, *, as_json: bool) -> int:
    """List the runs under ROOT (./runs) with status, steps and losses.

    Example: automodel-recipes runs ls
    """
    from automodel_recipes.runs.folder import find_runs

    if not root.is_dir():
        raise click.UsageError(f"{root}: no such directory. Give the directory that your runs are in.")
    found, problems = find_runs(root)
    rows = [_row(run, root) for run in found]
    if as_json:
        click.echo(json.dumps({"runs": rows, "problems": problems}))
        return 0
    for problem in problems:
        click.echo(f"skipped  {problem}", err=True)
    if rows:
        _table(rows)
    else:
        click.echo(f"no runs under {root}")
    return 0


@runs.command()
@click.argument("run", type=click.Path(path_type=Path))
@output_options
def show(run: Path, *, as_json: bool) -> int:
    """Status, figures, validation and checkpoints of RUN.

    Example: automodel-recipes runs show runs/demo_lora
    """
    from automodel_recipes.runs.folder import open_run

    opened = open_run(run)
    facts = {
        **_row(opened, run),
        "path": str(run),
        "end": opened.record.get("end"),
        "metrics": {name: opened.last(name) for name in opened.series},
        "checkpoints": list(opened.checkpoints()),
        "data": opened.record.get("data"),
        "versions": opened.record["versions"],
    }
    if as_json:
        click.echo(json.dumps(facts, default=str))
        return 0
    for key in ("path", "status", "recipe", "steps", "loss", "val_loss", "best_val_loss", "end"):
        if facts.get(key) is not None:
            click.echo(f"{key:<14} {_shown(facts[key])}")
    for name, value in facts["metrics"].items():
        click.echo(f"  {name:<28} {_shown(value)}")
    for checkpoint in facts["checkpoints"]:
        click.echo(f"  {checkpoint['name']:<28} {checkpoint['problem'] or 'complete'}")
    return 0


@runs.command()
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--exact", is_flag=True, help="Compare every number, answer and weight; exit 1 if unequal.")
@output_options
def diff(one: Path, other: Path, *, exact: bool, as_json: bool) -> int:
    """How two runs differ: configuration, environment, results.

    Example: automodel-recipes runs diff runs/a runs/b --exact
    """
    from automodel_recipes.runs.diff import compare
    from automodel_recipes.runs.folder import open_run

    found = compare(open_run(one), open_run(other), exact=exact)
    if as_json:
        click.echo(json.dumps(found.to_dict(), default=str))
    else:
        for title, rows in (("config", found.config), ("environ", found.environment), ("results", found.results)):
            for what, mine, theirs in rows:
                click.echo(f"{title:<9}{what}: {_shown(mine)} | {_shown(theirs)}")
        for line in found.exact or []:
            click.echo(f"exact    {line}")
        if found.exact == []:
            click.echo("exact    every logged number, answer and weight is the same")
        elif not (found.config or found.environment or found.results or exact):
            click.echo("no difference in configuration, environment and results")
    return 1 if found.exact else 0


@runs.command()
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", default="curves.png", show_default=True, type=click.Path(path_type=Path))
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Such as val/loss; may be repeated.")
@output_options
def plot(run: tuple[Path, ...], *, out: Path, metrics: tuple[str, ...], as_json: bool) -> int:
    """Draw the curves of one RUN, or of several over each other, as a PNG (or SVG, by its name).

    Example: automodel-recipes runs plot runs/a runs/b -o curves.png
    """
    from automodel_recipes.runs.curves import draw, write
    from automodel_recipes.runs.folder import open_run

    opened = {str(path): open_run(path) for path in run}
    names = _short_names(list(opened))
    series = {names[path]: folder.series for path, folder in opened.items()}
    write(draw(series, metrics=metrics, form="svg" if out.suffix == ".svg" else "png"), out)
    click.echo(json.dumps({"plot": str(out), "runs": list(opened)}) if as_json else f"plot     {out}")
    return 0


@runs.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="RUN/report.html by default.")
@output_options
def report(run: Path, *, out: Path | None, as_json: bool) -> int:
    """Write one HTML page about RUN that needs no network.

    Example: automodel-recipes runs report runs/demo_lora
    """
    from automodel_recipes.runs.folder import open_run
    from automodel_recipes.runs.report import write_report

    path = out or run / "report.html"
    write_report(open_run(run), path)
    click.echo(json.dumps({"report": str(path)}) if as_json else f"report   {path}")
    return 0


def _row(run: "RunFolder", root: Path) -> dict[str, Any]:
    path = run.path
    return {
        "run": str(path.relative_to(root)) if path != root and path.is_relative_to(root) else str(path),
        "status": run.record["status"],
        "recipe": run.record.get("recipe"),
        "steps": run.last_step,
        "loss": run.last("train/loss"),
        "val_loss": run.last("val/loss"),
        "best_val_loss": run.best("val/loss"),
    }


def _table(rows: list[dict[str, Any]]) -> None:
    columns = ("run", "status", "steps", "loss", "val_loss", "best_val_loss", "recipe")
    lines = [list(columns), *([_shown(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    from automodel_recipes.loggers.console import one_line, printable

    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(one_line(str(value)))


def _short_names(paths: list[str]) -> dict[str, str]:
    """The last parts of the paths, longer ones where those are the same."""
    names = {path: Path(path).name for path in paths}
    return names if len(set(names.values())) == len(paths) else {path: path for path in paths}

"""A command of its own: ``automodel-recipes steps RUN``."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def steps(run: Path) -> None:
    """Print how many steps a run has logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    click.echo(sum(row["kind"] == "train" for row in rows))

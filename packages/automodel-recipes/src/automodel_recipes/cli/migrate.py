"""``migrate FILE``."""

import json
from pathlib import Path

import click

from automodel_recipes.cli.arguments import output_options

_FORMS = ("nemo", "hierarchical", "trl", "axolotl")


@click.command()
@click.argument("file", type=click.Path())
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write; standard output by default.")
@click.option("--dialect", type=click.Choice(_FORMS), help="The form of FILE; recognised by its keys by default.")
@output_options
def migrate(file: str, *, out: Path | None, dialect: str | None, as_json: bool) -> int:
    """Rewrite a YAML of NeMo Automodel, TRL or axolotl in our form.

    Exit code 2 where a key has no counterpart.

    Example: automodel-recipes migrate theirs.yaml -o ours.yaml
    """
    from automodel_recipes.migrate import migrate as convert

    result = convert(file, dialect=dialect)
    if out is not None:
        if out.exists():
            raise click.UsageError(f"{out} exists; name a new file, or remove it")
        out.write_text(f"# Migrated from {Path(file).name}.\n{result.text}", encoding="utf-8")
    if as_json:
        notes = [{"at": str(n.source), "path": n.path, "outcome": n.outcome, "note": n.message} for n in result.notes]
        click.echo(json.dumps({"ok": not result.unknown, "dialect": result.dialect, "notes": notes}))
    else:
        for note in result.notes:
            click.echo(f"{note.outcome:<14} {note}", err=True)
        if out is None:
            click.echo(result.text, nl=False)
        elif not result.unknown:
            click.echo(f"next           automodel-recipes validate {out}", err=True)
    return 2 if result.unknown else 0

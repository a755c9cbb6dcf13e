"""``recipes ls|cp|new|show``."""

import json
from pathlib import Path

import click

from automodel_recipes.cli.arguments import output_options
from automodel_recipes.shipped import ShippedRecipe, find_shipped, shipped_recipes


@click.group()
def recipes() -> None:
    """List, copy and show the recipes that ship with this package.

    Example: automodel-recipes recipes cp demo_lora
    """


@recipes.command()
@output_options
def ls(*, as_json: bool) -> None:
    """List the shipped recipes.

    Example: automodel-recipes recipes ls
    """
    known = shipped_recipes().values()
    if as_json:
        rows = [{"name": recipe.name, "folder": recipe.folder, "summary": recipe.summary} for recipe in known]
        click.echo(json.dumps(rows))
        return
    width = max((len(recipe.name) for recipe in known), default=0)
    for recipe in known:
        click.echo(f"{recipe.folder:<4} {recipe.name:<{width}}  {recipe.summary}")


@recipes.command()
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=Path())
@output_options
def cp(name: str, destination: Path, *, as_json: bool) -> None:
    """Copy a recipe here, or to DESTINATION (a folder or a file name).

    Example: automodel-recipes recipes cp demo_lora my_first.yaml
    """
    recipe = _find(name)
    target = destination / recipe.path.name if destination.is_dir() else destination
    if target.exists():
        raise click.UsageError(f"{target} exists already; give another DESTINATION, or move it away")
    if not target.parent.is_dir():
        raise click.UsageError(f"{target.parent} is not a folder; create it first")
    target.write_bytes(recipe.path.read_bytes())
    if as_json:
        click.echo(json.dumps({"path": str(target)}))
        return
    click.echo(f"wrote    {target}")
    click.echo(f"next     automodel-recipes train {click.format_filename(_quoted(target))}")


@recipes.command()
@click.argument("name")
@click.option("--model", required=True, help="Directory or hub id of the model.")
@click.option("--data", required=True, help="JSONL of conversations, or a hub id.")
@click.option("--validation", metavar="DATA", help="Rows to measure on, in the same form; `eval` needs some.")
@click.option("--full", is_flag=True, help="Train every parameter instead of LoRA.")
@click.option("--gpu", metavar="NAME", help="What it will train on, such as h100; this machine's CPU by default.")
def new(name: str, *, model: str, data: str, validation: str | None, full: bool, gpu: str | None) -> None:
    """Write NAME.yaml for a model and data of your own: batch, packing and rates chosen, each with its reason.

    Example: automodel-recipes recipes new my_first --model ./model --data rows.jsonl
    """
    from automodel_core.config.dump import to_yaml
    from automodel_recipes.gpus import find_gpu
    from automodel_recipes.starter import commented, starter_config

    try:
        card = None if gpu is None else find_gpu(gpu)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    target = Path(f"{name.removesuffix('.yaml')}.yaml")
    if target.exists():
        raise click.UsageError(f"{target} exists already; give another NAME, or move it away")
    if not target.parent.is_dir():
        raise click.UsageError(f"{target.parent} is not a folder; create it first")
    from automodel_recipes.plan.choose import choose

    config = starter_config(target.stem, model=model, data=data, validation=validation, full=full)
    comments = choose(config, gpu=card)
    text = commented(to_yaml(config), comments)
    target.write_text(f"# Fine-tune {model} on {data}.\n{text}", encoding="utf-8")
    for section, comment in comments.items():
        click.echo(f"{section}: {comment}")
    click.echo(f"wrote    {target}")
    click.echo(f"next     automodel-recipes validate {_quoted(target)}")


@recipes.command()
@click.argument("name")
@output_options
def show(name: str, *, as_json: bool) -> None:
    """Print a shipped recipe.

    Example: automodel-recipes recipes show demo_lora
    """
    text = _find(name).path.read_text(encoding="utf-8")
    click.echo(json.dumps({"name": name, "text": text}) if as_json else text, nl=as_json)


def _find(name: str) -> ShippedRecipe:
    try:
        return find_shipped(name)
    except LookupError as error:
        raise click.UsageError(str(error)) from None


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))

"""``config show|explain|schema``."""

import json
from typing import Any

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, output_options, read_config


@click.group()
def config() -> None:
    """Look at a configuration: its values, their origins, what keys mean.

    Example: automodel-recipes config show llama_lora.yaml --provenance
    """


@config.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--provenance", is_flag=True, help="Where each value comes from, defaults included.")
@output_options
def show(
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    provenance: bool,
    as_json: bool,
) -> None:
    """Print CONFIG after variables and overrides; secrets stay hidden.

    Example: automodel-recipes config show llama_lora.yaml optimizer.lr=1e-4 --provenance
    """
    from automodel_recipes.validation.keys import to_plain

    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust_remote_code)
    if provenance:
        from automodel_recipes.validation.provenance import provenance as find_origins

        _print_rows(find_origins(node), as_json=as_json)
    elif as_json:
        click.echo(json.dumps(to_plain(node.tree)))
    else:
        from automodel_core.config.dump import to_yaml

        click.echo(to_yaml(to_plain(node.tree)), nl=False)


def _print_rows(rows: list[Any], *, as_json: bool) -> None:
    if as_json:
        objects = {row.path: {"value": row.value, "origin": row.origin, "source": row.source} for row in rows}
        click.echo(json.dumps(objects, default=str))
        return
    texts = [f"{row.path} = {row.value}" for row in rows]
    width = min(max(map(len, texts), default=0), 64)
    for row, text in zip(rows, texts, strict=True):
        click.echo(f"{text:<{width}}  {row.source}")


@config.command()
@click.argument("path")
@click.option("--config", "file", type=click.Path(), help="A YAML whose values and targets are looked up.")
@click.option("--recipe", default=None, metavar="NAME", help="Whose sections; that of --config by default.")
@output_options
def explain(path: str, *, file: str | None, recipe: str | None, as_json: bool) -> None:
    """Say what the key or section PATH means and what may stand there.

    Example: automodel-recipes config explain step_scheduler.global_batch_size
    """
    from automodel_recipes.validation.explain import explain as find_explanation

    node = read_config(file, ()) if file is not None else None
    try:
        found = find_explanation(path, node, recipe=recipe)
    except LookupError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps(vars(found), default=str))
        return
    click.echo(f"{found.path}: {found.doc}" if found.doc else found.path)
    for label, text in (
        ("allowed", found.allowed),
        ("default", found.default),
        ("keys", ", ".join(found.keys)),
        ("value", f"{found.value}  ({found.source})" if found.source else ""),
    ):
        if text:
            click.echo(f"  {label:<8} {text}")


@config.command()
@click.option("--recipe", default=None, metavar="NAME", help="LLMFinetuneRecipe by default.")
@output_options
def schema(*, recipe: str | None, as_json: bool) -> None:
    """Print a JSON Schema for editors.

    Example: automodel-recipes config schema > automodel.schema.json
    """
    from automodel_core.config.suggest import did_you_mean
    from automodel_recipes.schema import DEFAULT_RECIPE, RECIPES
    from automodel_recipes.validation.json_schema import schema_text

    name = recipe or DEFAULT_RECIPE
    if name not in RECIPES:
        raise click.UsageError(f"no recipe {name!r}{did_you_mean(name, RECIPES)}")
    click.echo(schema_text(name), nl=False)

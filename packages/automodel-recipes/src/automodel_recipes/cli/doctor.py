"""``doctor``."""

import json

import click

from automodel_recipes.cli.arguments import output_options


@click.command()
@click.option("--network", is_flag=True, help="Try to reach the model hub as well.")
@output_options
def doctor(*, network: bool, as_json: bool) -> None:
    """Print versions, devices, which kernels run here and why not, and disk space.

    Example: automodel-recipes doctor
    """
    from automodel_recipes.doctor import examine

    facts = examine(network=network)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for section, rows in facts.items():
        for name, text in rows.items():
            click.echo(f"{section:<9}{name:<22} {text}")

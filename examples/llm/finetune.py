"""``python examples/llm/finetune.py --config CONFIG.yaml [a.b=c ...]``: the same as ``automodel-recipes train``."""

import sys

import click

from automodel_recipes.cli import main


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--config", "-c", required=True, type=click.Path(exists=True, dir_okay=False), help="The YAML to run.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def finetune(config: str, arguments: tuple[str, ...]) -> None:
    """Train CONFIG; what follows is handed to ``automodel-recipes train``: overrides and options."""
    sys.exit(main(["train", config, *arguments]))


if __name__ == "__main__":
    finetune()

"""``ckpt ...``: look at checkpoints and turn them into other forms."""

from pathlib import Path

import click


@click.group()
def ckpt() -> None:
    """Inspect and convert checkpoints.

    Example: automodel-recipes ckpt merge runs/demo_lora -o merged
    """


@ckpt.command()
@click.argument("path")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New directory for the model.")
@click.option("--base-model", metavar="PATH", help="The base model, where it has moved.")
def merge(path: str, *, out: Path, base_model: str | None) -> int:
    """Add an adapter's weights into its base model and write a plain Hugging Face directory.

    Example: automodel-recipes ckpt merge runs/demo_lora -o merged
    """
    from automodel_recipes.inference import merge_adapter
    from automodel_recipes.places import find_place

    merge_adapter(find_place(path), out, base_model=base_model)
    click.echo(f"merged   {out}")
    return 0

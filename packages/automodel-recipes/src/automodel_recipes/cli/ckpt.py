"""``ckpt ...``: look at checkpoints and turn them into other forms."""

from pathlib import Path

import click


@click.group()
def ckpt() -> None:
    """Inspect and convert checkpoints.

    Example: automodel-recipes ckpt merge runs/demo_lora -o merged
    """


def _forward(name: str, help_text: str) -> None:
    """A command that automodel_ckpt's own console script carries out."""

    example = f"Example: automodel-recipes ckpt {name} --help"
    passed_on = {"ignore_unknown_options": True, "help_option_names": []}

    @ckpt.command(name, help=f"{help_text}\n\n{example}", short_help=help_text, context_settings=passed_on)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def forwarded(arguments: tuple[str, ...]) -> int:
        from automodel_ckpt.cli import main

        return main([name, *arguments])


for _name, _help in (
    ("ls", "List the checkpoints of a run."),
    ("verify", "Read every byte of a checkpoint and compare it with its hash."),
    ("export", "Write a Hugging Face directory from a checkpoint, in bounded memory."),
    ("diff", "Compare two checkpoints tensor by tensor."),
    ("gc", "Delete leftovers of dead runs and old checkpoints."),
    ("import", "Take over a checkpoint of torch DCP or NeMo Automodel."),
):
    _forward(_name, _help)


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

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

        return main([name, *_located(arguments, _NUM_CHECKPOINTS.get(name, 0))])


# How many of a command's first arguments are checkpoints; those of the others are runs or foreign.
_NUM_CHECKPOINTS = {"consolidate": 1, "diff": 2, "verify": 1}


def _located(arguments: tuple[str, ...], number: int) -> list[str]:
    """The arguments with ``RUN``, ``RUN@best`` and ``RUN@1200`` as paths, among the first ``number`` places."""
    from automodel_recipes.places import checkpoint_path

    located = []
    for argument in arguments:
        is_place = number > 0 and not argument.startswith("-")
        number -= is_place
        located.append(checkpoint_path(argument) if is_place else argument)
    return located


for _name, _help in (
    ("ls", "List the checkpoints of a run."),
    ("verify", "Check a checkpoint by its hashes; load an exported model or adapter and compare its logits."),
    ("consolidate", "Write the weights of a checkpoint in Hugging Face format, in bounded memory."),
    ("diff", "Compare two checkpoints tensor by tensor."),
    ("gc", "Delete leftovers of dead runs and old checkpoints."),
    ("import", "Take over a checkpoint of torch DCP or NeMo Automodel."),
):
    _forward(_name, _help)


@ckpt.command()
@click.argument("path")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New directory.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Cast the weights of a model.")
@click.option("--shard-size", metavar="SIZE", help="Largest file of a model, such as 2GB; 5GB by default.")
def export(path: str, *, out: Path, dtype: str | None, shard_size: str | None) -> int:
    """Write what a run or one of its checkpoints holds as plain transformers or peft reads it.

    Example: automodel-recipes ckpt export runs/demo_lora@best -o adapter
    """
    from automodel_recipes.exporting import export_weights
    from automodel_recipes.loggers.logging_setup import quiet_libraries
    from automodel_recipes.places import find_place

    quiet_libraries()
    kind = export_weights(find_place(path), out, dtype=dtype, shard_size=shard_size)
    click.echo(f"exported {out} ({kind})")
    return 0


@ckpt.command()
@click.argument("path")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New directory for the model.")
@click.option("--base-model", metavar="PATH", help="The base model, where it has moved.")
def merge(path: str, *, out: Path, base_model: str | None) -> int:
    """Add an adapter's weights into its base model and write a plain Hugging Face directory.

    Example: automodel-recipes ckpt merge runs/demo_lora -o merged
    """
    from automodel_recipes.exporting import merge_adapter
    from automodel_recipes.loggers.logging_setup import quiet_libraries
    from automodel_recipes.places import find_place

    quiet_libraries()
    merge_adapter(find_place(path), out, base_model=base_model)
    click.echo(f"merged   {out}")
    return 0


@ckpt.command()
@click.argument("path")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--base-model", metavar="ID", help="Hub id of the base model of an adapter trained on a local copy.")
@click.option("--public", is_flag=True, help="A new repository is private without this.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to.")
@click.option("--message", default="Upload weights", show_default=True, help="Commit message.")
@click.option("--dry-run", is_flag=True, help="List the files and upload nothing.")
def push(
    path: str,
    repo_id: str,
    *,
    base_model: str | None,
    public: bool,
    revision: str | None,
    message: str,
    dry_run: bool,
) -> int:
    """Upload finished weights, tokenizer and a model card to the hub, in one commit.

    Example: automodel-recipes ckpt push runs/demo_lora me/orders-lora --base-model me/tiny-llama --dry-run
    """
    from automodel_recipes.places import find_place
    from automodel_recipes.publishing import plan_publication, publish

    planned = plan_publication(find_place(path), base_model=base_model)
    for name in sorted([*planned.files, *planned.texts]):
        click.echo(f"file     {name}" + (" (written for the upload)" if name in planned.texts else ""))
    for name in planned.left_out:
        click.echo(f"left out {name}")
    if dry_run:
        return 0
    click.echo(f"pushed   {publish(planned, repo_id, private=not public, revision=revision, message=message)}")
    return 0

"""A click group that knows its commands by name and imports them on use."""

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import click

GROUP = "automodel.commands"


@dataclass(frozen=True)
class Verb:
    """A command: where it lives, under which heading it is listed, and its one-line help."""

    home: str
    section: str
    help: str


# A new command is one line here. The help stands here too, so that `--help` imports no command.
VERBS = {
    "train": Verb("automodel_recipes.cli.train:train", "Run", "Fine-tune or pretrain: the recipe named in the YAML."),
    "eval": Verb("automodel_recipes.cli.eval:evaluate", "Run", "Loss, accuracy and exact match of what a run made."),
    "generate": Verb("automodel_recipes.cli.generate:generate", "Run", "Answer one prompt with what a run made."),
    "chat": Verb("automodel_recipes.cli.generate:chat", "Run", "Talk to a run, adapter, model or hub id."),
    "bench": Verb("automodel_recipes.cli.bench:bench", "Run", "Time training steps: tokens/s, MFU, memory."),
    "validate": Verb(
        "automodel_recipes.cli.validate:validate", "Prepare", "All problems of a YAML, each with its place."
    ),
    "config": Verb("automodel_recipes.cli.config:config", "Prepare", "Values and their origins; what a key means."),
    "data": Verb("automodel_recipes.cli.data:data", "Prepare", "Rows as the model gets them; checks; the cache."),
    "plan": Verb("automodel_recipes.cli.plan:plan", "Prepare", "Will it fit? Memory and traffic, without a GPU."),
    "doctor": Verb("automodel_recipes.cli.doctor:doctor", "Prepare", "Versions, devices, kernels and disk space."),
    "migrate": Verb(
        "automodel_recipes.cli.migrate:migrate", "Prepare", "A YAML of NeMo Automodel, TRL or axolotl in our form."
    ),
    "recipes": Verb("automodel_recipes.cli.recipes:recipes", "Prepare", "List, copy and show the shipped recipes."),
    "launch": Verb("automodel_recipes.cli.launch:launch", "Scale", "Put a run on a cluster."),
    "runs": Verb("automodel_recipes.cli.runs:runs", "Outputs", "List, compare, draw and report runs."),
    "ckpt": Verb("automodel_recipes.cli.ckpt:ckpt", "Outputs", "Inspect and convert checkpoints."),
}
_SECTIONS = ("Run", "Prepare", "Outputs", "Scale")
_OTHERS = "Installed by other packages"


class LazyGroup(click.Group):
    """Lists and loads :data:`VERBS` and what other packages register in entry-point group ``automodel.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *sorted(_third_party())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in VERBS:
            module, _, attribute = VERBS[cmd_name].home.partition(":")
            command = getattr(importlib.import_module(module), attribute)
        elif cmd_name in (others := _third_party()):
            command = _load(others[cmd_name])
        else:
            return None
        if not isinstance(command, click.Command):
            raise click.ClickException(f"{cmd_name!r} is registered in {GROUP} but is not a click command")
        _keep_examples_whole(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from automodel_core.config.suggest import did_you_mean

            hint = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Four short sections; help texts come from the table, not from the commands."""
        for section in _SECTIONS:
            rows = [(name, verb.help) for name, verb in VERBS.items() if verb.section == section]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)
        others = [(name, point.value) for name, point in sorted(_third_party().items())]
        if others:
            with formatter.section(_OTHERS):
                formatter.write_dl(others)


def _keep_examples_whole(command: click.Command) -> None:
    """Keep click from wrapping examples: a command broken in two cannot be pasted."""
    if command.help and "\b" not in command.help:
        command.help = command.help.replace("Example: ", "\b\nExample: ", 1)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _keep_examples_whole(below)


def _third_party() -> dict[str, EntryPoint]:
    """Commands of other packages; ours cannot be replaced."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in VERBS}


def _load(point: EntryPoint) -> click.Command:
    try:
        return point.load()
    except Exception as error:
        message = f"command {point.name!r} ({point.value}) does not import: {type(error).__name__}: {error}"
        raise click.ClickException(message) from error

"""The command line: the help of every command, as it prints it."""

import click

from automodel_recipes.cli.app import cli


def command_page() -> str:
    """One page with every command and subcommand of ``automodel-recipes``."""
    context = click.Context(cli, info_name="automodel-recipes", max_content_width=110)
    lines = ["# Commands", "", "What each command prints for `--help`.", ""]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        lines += sections(command, context, name, level=2)
    return "\n".join(lines) + "\n"


def sections(command: click.Command, parent: click.Context, name: str, *, level: int) -> list[str]:
    """The help of a command, then of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent, max_content_width=110)
    lines = [f"{'#' * level} {context.command_path.removeprefix('automodel-recipes ')}", ""]
    lines += ["```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            lines += sections(found, context, inner, level=level + 1)
    return lines

"""Arguments that several commands share: CONFIG, overrides, and what a configuration is allowed to do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode

F = TypeVar("F", bound=Callable[..., Any])

# Overrides may look like options (`--optimizer.lr 1e-4`); click leaves them to us.
OVERRIDES_AS_ARGUMENTS = {"ignore_unknown_options": True}


def config_arguments(command: F) -> F:
    """``CONFIG [a.b=c ...] --allow-target PREFIX --trust-remote-code``."""
    for decorate in reversed(
        (
            click.argument("config", type=click.Path()),
            click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[a.b=c ...]"),
            click.option("--allow-target", multiple=True, metavar="PREFIX", help="Let _target_ name PREFIX as well."),
            click.option("--trust-remote-code", is_flag=True, help="Accept it in CONFIG, where a revision is pinned."),
        )
    ):
        command = decorate(command)
    return command


def output_options(command: F) -> F:
    """``--json`` and ``--debug``; the entry point reads them from the command line itself."""
    for decorate in reversed(
        (
            click.option("--json", "as_json", is_flag=True, help="Print JSON for programs."),
            click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        )
    ):
        command = decorate(command)
    return command


def read_config(
    config: str, overrides: Sequence[str], *, allow_target: Sequence[str] = (), trust_remote_code: bool = False
) -> "ConfigNode":
    """Load CONFIG with overrides; one of NeMo Automodel or in the hierarchical form is read as ours.

    Raises:
        click.UsageError: a word that was meant as an option of the command.
        ConfigError: the file or an override cannot be used.
    """
    from automodel_core.config import load_config

    _refuse_misspelt_options(overrides)
    node = load_config(config, overrides, allow_targets=allow_target, trust_remote_code=trust_remote_code)
    from automodel_recipes.migrate import as_native

    native, without_effect = as_native(node)
    for note in without_effect:
        click.echo(f"ignored  {note}", err=True)
    return native


def _refuse_misspelt_options(overrides: Sequence[str]) -> None:
    context = click.get_current_context()
    known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    for word in overrides:
        name = word.partition("=")[0]
        if name.startswith("--") and "-" in name[2:] and "." not in name:
            from automodel_core.config.suggest import did_you_mean

            raise click.UsageError(f"no option {name}{did_you_mean(name, known)}", context)

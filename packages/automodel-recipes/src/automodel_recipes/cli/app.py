"""The entry point: one click group whose commands are imported when they are called."""

import os
import sys
from collections.abc import Sequence

import click

from automodel_recipes.__about__ import __version__
from automodel_recipes.cli.errors import report
from automodel_recipes.cli.group import LazyGroup
from automodel_recipes.launch.local import under_launcher
from automodel_recipes.launch.rank_exit import RankExit

_PROGRAM = "automodel-recipes"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog='Shell completion: eval "$(_AUTOMODEL_RECIPES_COMPLETE=bash_source automodel-recipes)" (or zsh, fish).',
)
@click.version_option(__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Fine-tune any Hugging Face LLM or VLM from one YAML file.

    \b
    Example: automodel-recipes recipes cp demo_lora && automodel-recipes train demo_lora.yaml
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 ok, 2 configuration or usage, 3 out of memory, 4 data, 5 non-finite loss, 6 checkpoint, 130 and 143 signals,
    1 anything else.
    """
    if argv is None and under_launcher():
        rank = RankExit()
        rank.code = _run(sys.argv[1:])
        return rank.code
    return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name=_PROGRAM, standalone_mode=False, obj=arguments)
    except BrokenPipeError:
        # The reader of our output (`| head`) has left; a second flush at exit would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last stop: every error becomes a line and a code
        return report(error, debug="--debug" in arguments, as_json="--json" in arguments)
    return result if isinstance(result, int) else 0

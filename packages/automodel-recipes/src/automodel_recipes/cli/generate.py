"""``generate PATH`` and ``chat PATH``: talk to what a run made."""

import json
from typing import Any

import click

from automodel_recipes.cli.arguments import F, output_options
from automodel_recipes.errors import RecipeError


def _model_options(command: F) -> F:
    for decorate in reversed(
        (
            click.argument("path"),
            click.option("--base-model", metavar="PATH", help="The adapter's base model, where it has moved."),
            click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1)),
            click.option(
                "--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy."
            ),
            click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps|xpu"),
        )
    ):
        command = decorate(command)
    return command


@click.command()
@_model_options
@click.option("--prompt", required=True, help="The user's message.")
@click.option("--system", help="A system message before it.")
@click.option("--image", "images", multiple=True, type=click.Path(exists=True), help="Ask about it; may be repeated.")
@output_options
def generate(path: str, *, prompt: str, system: str | None, images: tuple[str, ...], as_json: bool, **keys: Any) -> int:
    """Answer one prompt with a run, checkpoint, adapter, model directory or hub id.

    Example: automodel-recipes generate runs/demo_lora --prompt "Two red mugs, please."
    """
    speaker, sampling = _load(path, images=bool(images), **keys)
    from automodel_recipes.talking import Turn

    turns = [Turn("system", system)] if system else []
    turns.append(Turn("user", prompt, images))
    answer = _say(speaker, turns, sampling, silent=as_json)
    if as_json:
        shown = {"images": list(images)} if images else {}
        click.echo(json.dumps({"prompt": prompt, **shown, "answer": answer}))
    return 0


@click.command()
@_model_options
@click.option("--system", help="A system message before the conversation.")
@click.option("--image", "images", multiple=True, type=click.Path(exists=True), help="Stands before the first message.")
def chat(path: str, *, system: str | None, images: tuple[str, ...], **keys: Any) -> int:
    """Talk to what a run made, or a model; /image PATH adds a picture, /new forgets, an empty line ends.

    Example: automodel-recipes chat runs/demo_lora
    """
    speaker, sampling = _load(path, images=True if images else None, **keys)
    from automodel_recipes.talking import Turn, image_paths

    opening = [Turn("system", system)] if system else []
    turns = list(opening)
    while line := _ask():
        if line == "/new":
            turns, images = list(opening), ()
            continue
        if line.startswith("/image"):
            try:
                images += image_paths(line.removeprefix("/image").strip())
            except (RecipeError, ValueError) as error:
                click.echo(str(error), err=True)
            continue
        turns.append(Turn("user", line, images))
        turns.append(Turn("assistant", _say(speaker, turns, sampling)))
        images = ()
    return 0


def _say(speaker: Any, turns: Any, sampling: dict[str, Any], *, silent: bool = False) -> str:
    """Print the answer as it comes; returns all of it."""
    pieces = []
    for piece in speaker.answer(turns, **sampling):
        pieces.append(piece)
        if not silent:
            click.echo(_printable(piece), nl=False)
    if not silent:
        click.echo()
    return "".join(pieces)


def _ask() -> str:
    """One line from the user; empty at the end of the input."""
    try:
        return str(click.prompt("you", prompt_suffix="> ", default="", show_default=False)).strip()
    except click.exceptions.Abort:
        click.echo()
        return ""


def _load(
    path: str, *, base_model: str | None, max_new_tokens: int, temperature: float, device: str, images: bool | None
) -> tuple[Any, dict[str, Any]]:
    from automodel_recipes.loggers.logging_setup import quiet_libraries
    from automodel_recipes.talking import open_speaker

    quiet_libraries()
    speaker = open_speaker(path, base_model=base_model, device=device, images=images)
    return speaker, {"max_new_tokens": max_new_tokens, "temperature": temperature}


def _printable(text: str) -> str:
    from automodel_recipes.loggers.console import printable

    return printable(text)

"""``generate PATH`` and ``chat PATH``: talk to what a run made."""

import json
import shlex
from typing import Any

import click

from automodel_recipes.cli.arguments import F, output_options


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
    if images or _needs_processor(path):
        return _answer_about_images(path, images, prompt=prompt, system=system, as_json=as_json, **keys)
    model, tokenizer, sampling = _load(path, **keys)
    from automodel_recipes.inference import stream_answer

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    pieces = []
    for piece in stream_answer(model, tokenizer, messages, **sampling):
        pieces.append(piece)
        if not as_json:
            click.echo(_printable(piece), nl=False)
    click.echo(json.dumps({"prompt": prompt, "answer": "".join(pieces)}) if as_json else "")
    return 0


def _needs_processor(path: str) -> bool:
    from automodel_recipes.places import find_place
    from automodel_recipes.vlm.inference import needs_processor

    return needs_processor(find_place(path))


def _answer_about_images(
    path: str,
    images: tuple[str, ...],
    *,
    prompt: str,
    system: str | None,
    as_json: bool,
    base_model: str | None,
    max_new_tokens: int,
    temperature: float,
    device: str,
) -> int:
    if system or temperature:
        raise click.UsageError(
            "a vision-language model answers greedily, without a system message: leave out --system and --temperature."
        )
    from automodel_parallel.init import resolve_device
    from automodel_recipes.places import find_place
    from automodel_recipes.vlm.inference import answer_about_images, load_vlm

    model, processor = load_vlm(find_place(path), base_model=base_model, device=str(resolve_device(device)))
    answer = answer_about_images(model, processor, images, prompt, max_new_tokens=max_new_tokens)
    click.echo(json.dumps({"prompt": prompt, "images": images, "answer": answer}) if as_json else _printable(answer))
    return 0


@click.command()
@_model_options
@click.option("--system", help="A system message before the conversation.")
def chat(path: str, *, system: str | None, **keys: Any) -> int:
    """Talk to a run, checkpoint, adapter, model directory or hub id; an empty line ends it.

    Example: automodel-recipes chat runs/demo_lora
    """
    if _needs_processor(path):
        raise click.UsageError(
            f"{path} is a vision-language model, and chat takes text alone. "
            f"Ask it one question: automodel-recipes generate {shlex.quote(path)} --image PICTURE --prompt '...'"
        )
    model, tokenizer, sampling = _load(path, **keys)
    from automodel_recipes.inference import stream_answer

    messages = [{"role": "system", "content": system}] if system else []
    while prompt := _ask():
        messages.append({"role": "user", "content": prompt})
        pieces = []
        for piece in stream_answer(model, tokenizer, messages, **sampling):
            pieces.append(piece)
            click.echo(_printable(piece), nl=False)
        click.echo()
        messages.append({"role": "assistant", "content": "".join(pieces)})
    return 0


def _ask() -> str:
    """One line from the user; empty at the end of the input."""
    try:
        return str(click.prompt("you", prompt_suffix="> ", default="", show_default=False)).strip()
    except click.exceptions.Abort:
        click.echo()
        return ""


def _load(
    path: str, *, base_model: str | None, max_new_tokens: int, temperature: float, device: str
) -> tuple[Any, Any, dict[str, Any]]:
    from automodel_parallel.init import resolve_device
    from automodel_recipes.inference import load_for_inference
    from automodel_recipes.places import find_place

    model, tokenizer = load_for_inference(find_place(path), base_model=base_model, device=str(resolve_device(device)))
    return model, tokenizer, {"max_new_tokens": max_new_tokens, "temperature": temperature}


def _printable(text: str) -> str:
    from automodel_recipes.loggers.console import printable

    return printable(text)

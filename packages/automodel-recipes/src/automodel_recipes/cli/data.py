"""``data show``, ``data check`` and ``data cache``: look at what a configuration trains on."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, F, config_arguments, output_options, read_config

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode


@click.group()
def data() -> None:
    """Show and check the rows of a configuration; tidy the cache.

    Example: automodel-recipes data check llama_lora.yaml --strict
    """


def _section_option(command: F) -> F:
    help_text = "dataset (the default), validation_dataset or validation_dataset_NAME."
    return click.option("--section", default="dataset", metavar="NAME", help=help_text)(command)


@data.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@_section_option
@click.option("--rows", "num_rows", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--start", default=0, show_default=True, type=click.IntRange(0), help="The first of them.")
@click.option("--color/--no-color", default=None, help="Trained tokens green, or in guillemets; by the terminal.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def show(
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    section: str,
    num_rows: int,
    start: int,
    color: bool | None,
) -> None:
    """Print rows as the model gets them, with what is trained marked.

    Example: automodel-recipes data show llama_lora.yaml --rows 5
    """
    _, dataset, tokenizer = _open(
        config, overrides, section, allow_target=allow_target, trust=trust_remote_code, num_rows=start + num_rows
    )
    from automodel_data.inspect import format_rows

    if start >= len(dataset):
        raise click.UsageError(f"--start {start}: {section} has {len(dataset)} rows, counted from 0")
    use_color = sys.stdout.isatty() if color is None else color
    rows = range(start, min(start + num_rows, len(dataset)))
    click.echo(format_rows(dataset, tokenizer, rows=rows, color=use_color), color=use_color)


@data.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@_section_option
@click.option("--strict", is_flag=True, help="Exit with 4 when something is wrong.")
@click.option(
    "--max-rows", type=click.IntRange(1), metavar="N", help="Look at the first N rows only; 10,000 of a stream."
)
@click.option("--pack-size", type=click.IntRange(2), metavar="N", help="Forecast packing at N tokens.")
@click.option("--bad-rows", type=click.Path(path_type=Path), help="Write the bad rows there, as JSON lines.")
@output_options
def check(
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    section: str,
    strict: bool,
    max_rows: int | None,
    pack_size: int | None,
    bad_rows: Path | None,
    as_json: bool,
) -> int:
    """Figures of a dataset, and what is wrong with it.

    Example: automodel-recipes data check llama_lora.yaml --strict
    """
    node, dataset, tokenizer = _open(
        config, overrides, section, allow_target=allow_target, trust=trust_remote_code, num_rows=max_rows or 10_000
    )
    from automodel_data.errors import DataError
    from automodel_data.inspect import expects_stop, format_summary, problems, summarise

    size = pack_size or node.get("packed_sequence.packed_sequence_size") or None
    summary = summarise(dataset, tokenizer, pack_size=size, max_rows=max_rows)
    found = problems(summary, expect_stop=expects_stop(dataset))
    report = getattr(dataset, "report", None)
    if bad_rows is not None:
        if report is None:
            raise click.UsageError(f"--bad-rows: {type(dataset).__name__} keeps no report of bad rows")
        report.write_bad_rows(bad_rows)
    if as_json:
        click.echo(json.dumps({**summary.to_dict(), "problems": found}))
    else:
        lines = [f"bad row     {row}" for row in (report.bad_rows[:10] if report is not None else [])]
        lines += [f"problem     {text}" for text in found] or ["no problem found"]
        click.echo("\n".join([format_summary(summary), *lines]))
    return DataError.exit_code if found and strict else 0


@data.group()
def cache() -> None:
    """List and delete tokenised data sets.

    Example: automodel-recipes data cache ls
    """


@cache.command()
@output_options
def ls(*, as_json: bool) -> None:
    """List the entries of the cache, newest first.

    Example: automodel-recipes data cache ls
    """
    from datetime import datetime

    from automodel_data.cache import cache_root, entries

    found = entries()
    if as_json:
        click.echo(json.dumps([{"key": e.key, "num_bytes": e.num_bytes, "modified": e.modified} for e in found]))
        return
    for entry in found:
        day = f"{datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}"
        click.echo(f"{entry.key}  {entry.num_bytes / 2**20:9.1f} MiB  {day}")
    if not found:
        click.echo(f"nothing in {cache_root()}")


@cache.command()
@click.argument("key")
@output_options
def rm(key: str, *, as_json: bool) -> None:
    """Delete the entries whose key begins with KEY.

    Example: automodel-recipes data cache rm 3f9a
    """
    from automodel_data.cache import remove

    removed = remove(key)
    click.echo(json.dumps({"removed": removed}) if as_json else f"removed  {removed}")


def _open(
    config: str, overrides: Sequence[str], section: str, *, allow_target: Sequence[str], trust: bool, num_rows: int
) -> tuple["ConfigNode", Any, Any]:
    """The configuration, its dataset and its tokenizer; the YAML is checked first, as for training."""
    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust)
    from automodel_recipes.data_rows import open_rows, tolerant_overrides
    from automodel_recipes.validation import check as check_config

    check_config(node)
    more = tolerant_overrides(node, section)
    node = read_config(config, [*overrides, *more], allow_target=allow_target, trust_remote_code=trust)
    return node, *open_rows(node, section, num_rows=num_rows)

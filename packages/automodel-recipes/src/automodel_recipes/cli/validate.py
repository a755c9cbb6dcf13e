"""``validate CONFIG``."""

import json

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, output_options, read_config


@click.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--deep", is_flag=True, help="Import what source does not explain, and bind its keywords too.")
@click.option("--nproc-per-node", default=1, metavar="N", type=click.IntRange(1), help="Processes on this machine.")
@output_options
def validate(
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    deep: bool,
    nproc_per_node: int,
    as_json: bool,
) -> None:
    """Report every problem of CONFIG with file, line and column.

    Example: automodel-recipes validate llama_lora.yaml optimizer.lr=1e-4
    """
    from automodel_recipes.validation import check

    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust_remote_code)
    report = check(node, deep=deep, nproc_per_node=nproc_per_node)
    if as_json:
        undecided = [{"path": item.path, "target": item.target, "reason": item.reason} for item in report.deferred]
        click.echo(json.dumps({"ok": True, "values": report.num_values, "undecided": undecided}))
        return
    for item in report.deferred:
        click.echo(f"later    {item.source} {item.path}: {item.target} is bound when it is imported ({item.reason})")
    click.echo(f"ok       {config}: {report.num_values} values")
    if report.deferred:
        click.echo("next     add --deep to bind the rest")

"""``plan CONFIG``."""

import json
from pathlib import Path

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, output_options, read_config

# What does not divide is a row of the plan, beside the others.
_LAYOUT = ("distributed", "step_scheduler.global_batch_size", "step_scheduler.local_batch_size")


@click.command(context_settings=OVERRIDES_AS_ARGUMENTS, options_metavar="[OPTIONS]")
@config_arguments
@click.option("--world-size", default=1, metavar="N", type=click.IntRange(1), help="Ranks of the run; 1 by default.")
@click.option("--gpu", metavar="NAME", help="Propose a micro-batch for this GPU, such as h200.")
@click.option(
    "--seq-length", type=click.IntRange(1), metavar="N", help="Tokens of a row; else the data's or the YAML's."
)
@click.option(
    "--bench", type=click.Path(path_type=Path), metavar="FILE", help="Rows of `bench --output`: adds the time."
)
@click.option("--advise", is_flag=True, help="Rank edits of the YAML by the memory that they save.")
@click.option("--shapes", is_flag=True, help="Print every parameter's whole and local shape.")
@output_options
def plan(
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    world_size: int,
    gpu: str | None,
    seq_length: int | None,
    bench: Path | None,
    advise: bool,
    shapes: bool,
    as_json: bool,
) -> int:
    """Will it fit? Memory, shapes and traffic of one rank, without a GPU and without weights.

    Example: automodel-recipes plan llama_8b.yaml --world-size 8 --gpu h200
    """
    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust_remote_code)
    from automodel_core.config import ConfigError
    from automodel_recipes.gpus import find_gpu
    from automodel_recipes.validation import validate

    try:
        card = None if gpu is None else find_gpu(gpu)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    report = validate(node, files=False)
    if serious := [problem for problem in report.problems if not problem.path.startswith(_LAYOUT)]:
        raise ConfigError(serious)
    from automodel_recipes.loggers.logging_setup import quiet_libraries
    from automodel_recipes.plan.data import longest_row
    from automodel_recipes.plan.edits import RankedEdit, edit_lines, rank_edits
    from automodel_recipes.plan.make import make_plan
    from automodel_recipes.plan.report import plan_json, plan_lines
    from automodel_recipes.plan.timing import step_time

    quiet_libraries()
    found = None if seq_length is not None else longest_row(node)
    made = make_plan(node, world_size=world_size, gpu=card, seq_length=seq_length, longest_row=found)
    if not made.problems:
        made.problems += [problem.message for problem in report.problems]
    time = None if bench is None else step_time(made, bench, gpu=card)
    now, edits = 0, list[RankedEdit]()
    if advise and made.estimate is not None:
        now, edits = rank_edits(node, world_size=world_size, seq_length=seq_length, longest_row=found)
    if as_json:
        record = plan_json(made, gpu=card, time=time)
        click.echo(json.dumps(record | ({"edits": [vars(edit) for edit in edits]} if advise else {})))
    else:
        for label, text in plan_lines(made, name=config, gpu=card, time=time, shapes=shapes):
            click.echo(f"{label:<9}{text}")
        for index, text in enumerate(edit_lines(now, edits) if now else []):
            click.echo(f"{'' if index else 'edits':<9}{text}")
    return 2 if made.problems else 0

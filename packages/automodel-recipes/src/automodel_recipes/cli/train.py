"""``train CONFIG``."""

import json
import os
from typing import TYPE_CHECKING

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, output_options, read_config
from automodel_recipes.options import TrainOptions

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode


@click.command(context_settings=OVERRIDES_AS_ARGUMENTS, options_metavar="[OPTIONS]")
@config_arguments
@click.option("--nproc-per-node", default=1, metavar="N", type=click.IntRange(1), help="Processes on this machine.")
@click.option("--resume", default="never", metavar="auto|never|PATH", help="Go on with a run, or RUN@1200.")
@click.option("--max-steps", type=click.IntRange(1), metavar="N", help="Stop after N optimizer steps.")
@click.option("--preflight", is_flag=True, help="First a step on the longest rows, to see that they fit.")
@click.option("--dry-run", is_flag=True, help="Build everything, train no step.")
@click.option("--quiet", is_flag=True, help="Print no screen.")
@output_options
@click.pass_context
def train(
    context: click.Context,
    config: str,
    overrides: tuple[str, ...],
    *,
    allow_target: tuple[str, ...],
    trust_remote_code: bool,
    nproc_per_node: int,
    resume: str,
    max_steps: int | None,
    preflight: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Fine-tune or pretrain: the recipe named in CONFIG.

    Example: automodel-recipes train llama_lora.yaml optimizer.lr=1e-4 --nproc-per-node 2
    """
    node = read_config(config, overrides, allow_target=allow_target, trust_remote_code=trust_remote_code)
    from automodel_recipes.launch.local import launch, under_launcher
    from automodel_recipes.validation import check

    if node.get("slurm") is not None and not under_launcher() and "SLURM_JOB_ID" not in os.environ and not dry_run:
        return _submit(node, config, overrides, context=context, max_steps=max_steps, nproc_per_node=nproc_per_node)
    launches = nproc_per_node > 1 and not under_launcher()
    check(node, deep=not launches, nproc_per_node=nproc_per_node)
    if launches:
        return launch(context.find_root().obj, nproc_per_node)
    from automodel_recipes.loggers.logging_setup import quiet_libraries, setup_logging
    from automodel_recipes.run import run

    setup_logging("WARNING")
    quiet_libraries()

    options = TrainOptions(
        resume=resume,
        max_steps=max_steps,
        preflight=preflight,
        dry_run=dry_run,
        nproc_per_node=nproc_per_node,
        quiet=quiet or as_json,
    )
    code = run(node, options)
    if as_json and os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps({"ok": code == 0, "exit_code": code}))
    return code


def _submit(
    node: "ConfigNode",
    config: str,
    overrides: tuple[str, ...],
    *,
    context: click.Context,
    max_steps: int | None,
    nproc_per_node: int,
) -> int:
    """A `slurm:` section sends the run to the cluster; `~slurm` on the command line takes it out."""
    from automodel_recipes.cli.launch import submit_to_slurm
    from automodel_recipes.validation import check

    if nproc_per_node > 1:
        raise click.UsageError(
            "--nproc-per-node with a slurm section: the job has slurm.ntasks_per_node processes a node. Set that, or "
            "train on this machine: add the override ~slurm",
            context,
        )
    check(node)
    options = [] if max_steps is None else ["--max-steps", str(max_steps)]
    code = submit_to_slurm(node, config, overrides, options=options)
    click.echo("the slurm section sent it there; to train on this machine add: ~slurm")
    return code

"""``launch slurm|k8s|nodes CONFIG``: put a run on a cluster."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, read_config

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode


@click.group()
def launch() -> None:
    """Put a run on a cluster.

    Example: automodel-recipes launch slurm config.yaml --dry-run
    """


@launch.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--dry-run", is_flag=True, help="Print the script; submit nothing.")
def slurm(config: str, overrides: tuple[str, ...], *, dry_run: bool, **allowed: object) -> int:
    """Submit CONFIG as a Slurm job; its `slurm:` section describes the job.

    Example: automodel-recipes launch slurm config.yaml slurm.nodes=2 --dry-run
    """
    node = read_config(config, overrides, **allowed)  # type: ignore[arg-type]
    return submit_to_slurm(node, config, overrides, options=_permissions(**allowed), dry_run=dry_run)  # type: ignore[arg-type]


@launch.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--dry-run", is_flag=True, help="Print the manifest; apply nothing.")
def k8s(config: str, overrides: tuple[str, ...], *, dry_run: bool, **allowed: object) -> int:
    """Run CONFIG as a Kubernetes job; its `kubernetes:` section describes the job.

    Example: automodel-recipes launch k8s config.yaml kubernetes.image=my/image:1 --dry-run
    """
    from automodel_recipes.launch.kubernetes import apply_manifest, kubernetes_job, render_manifest
    from automodel_recipes.launch.slurm import NoSchedulerError

    node = read_config(config, overrides, **allowed)  # type: ignore[arg-type]
    # With the overrides, and with secrets as the YAML names them or masked.
    words = _permissions(**allowed)  # type: ignore[arg-type]
    manifest = render_manifest(kubernetes_job(node), config_text=node.to_yaml(), options=words)
    if dry_run:
        click.echo(manifest, nl=False)
        return 0
    path = Path(f"{Path(config).stem}.k8s.yaml")
    path.write_text(manifest, encoding="utf-8")
    try:
        click.echo(apply_manifest(path))
    except NoSchedulerError:
        click.echo(manifest, nl=False)
        raise
    return 0


@launch.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--nnodes", default=1, type=click.IntRange(1), metavar="N", help="Machines of the run.")
@click.option("--nproc-per-node", default=1, type=click.IntRange(1), metavar="N", help="Processes on each.")
@click.option("--master-addr", default="127.0.0.1", metavar="HOST", help="Machine number 0, as the others see it.")
@click.option("--master-port", default=29500, type=click.IntRange(1, 65535), metavar="PORT", help="A free port there.")
@click.option("--node-rank", type=click.IntRange(0), metavar="R", help="Run machine R's part here; else only print.")
def nodes(
    config: str,
    overrides: tuple[str, ...],
    *,
    nnodes: int,
    nproc_per_node: int,
    master_addr: str,
    master_port: int,
    node_rank: int | None,
    **allowed: object,
) -> int:
    """Print the command of every machine, or run this one's part, where there is no scheduler.

    Example: automodel-recipes launch nodes config.yaml --nnodes 2 --nproc-per-node 8 --master-addr host0
    """
    from automodel_recipes.launch.slurm import job_arguments, job_words

    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?", master_addr):
        raise click.UsageError(f"--master-addr {master_addr!r}: give a host name or an address")
    if node_rank is not None and node_rank >= nnodes:
        raise click.UsageError(f"--node-rank {node_rank} of {nnodes} machines: it must be below {nnodes}")
    read_config(config, overrides, **allowed)  # type: ignore[arg-type]
    _refuse_secrets(overrides)
    words = [*job_words(overrides), *_permissions(**allowed)]  # type: ignore[arg-type]
    if node_rank is not None:
        from automodel_recipes.launch.local import Machine
        from automodel_recipes.launch.local import launch as start

        machine = Machine(node_rank, nnodes, master_addr, master_port)
        return start(job_arguments(config, words), nproc_per_node, machine=machine)
    sizes = [f"--nnodes={nnodes}", f"--nproc-per-node={nproc_per_node}"]
    meeting = [f"--master-addr={master_addr}", f"--master-port={master_port}"]
    for rank in range(nnodes):
        line = ["automodel-recipes", "launch", "nodes", str(Path(config).resolve()), *words, *sizes, *meeting]
        click.echo(f"node {rank}: {shlex.join([*line, f'--node-rank={rank}'])}")
    return 0


def submit_to_slurm(
    node: "ConfigNode", config: str, overrides: Sequence[str], *, options: Sequence[str], dry_run: bool = False
) -> int:
    """Render the script and submit it; prints what each node will run.

    Raises: NoSchedulerError: there is no ``sbatch``; the script is printed first.
    """
    from automodel_recipes.launch.slurm import (
        NoSchedulerError,
        job_arguments,
        node_commands,
        render_script,
        slurm_job,
        submit_slurm_job,
    )

    job = slurm_job(node)
    _refuse_secrets(overrides)
    arguments = job_arguments(config, overrides, options)
    script = render_script(job, arguments)
    if dry_run:
        click.echo(script, nl=False)
        return 0
    path = Path(f"{Path(config).stem}.sbatch")
    path.write_text(script, encoding="utf-8")
    try:
        number = submit_slurm_job(path)
    except NoSchedulerError:
        click.echo(script, nl=False)
        raise
    for line in node_commands(job, arguments):
        click.echo(line)
    click.echo(f"submitted job {number} from {path}")
    return 0


def _refuse_secrets(overrides: Sequence[str]) -> None:
    """A job script, or a printed command, keeps its words, so a secret must not be among them."""
    from automodel_core.config.overrides import parse_overrides
    from automodel_core.config.secret import is_secret_key

    for override in parse_overrides(overrides):
        key = override.path.rpartition(".")[2]
        if is_secret_key(key) and override.value and not override.value.startswith("${"):
            raise click.UsageError(
                f"{override.path}: its value would stand in the script. Put it into an environment variable, "
                f"write '{override.path}=${{NAME}}', and name the variable in slurm.pass_environment."
            )


def _permissions(*, allow_target: Sequence[str], trust_remote_code: bool) -> list[str]:
    """What this command line permits, for the command line of the job."""
    words = [word for prefix in allow_target for word in ("--allow-target", prefix)]
    return [*words, "--trust-remote-code"] if trust_remote_code else words

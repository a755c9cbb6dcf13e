"""``launch slurm CONFIG``: put a run on a cluster."""

from pathlib import Path

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, config_arguments, read_config


@click.group()
def launch() -> None:
    """Put a run on a cluster.

    Example: automodel-recipes launch slurm config.yaml --dry-run
    """


def _refuse_secrets(overrides: tuple[str, ...]) -> None:
    """A job script keeps the words of its command, so a secret must not be among them."""
    from automodel_core.config.overrides import parse_overrides
    from automodel_core.config.secret import is_secret_key

    for override in parse_overrides(overrides):
        key = override.path.rpartition(".")[2]
        if is_secret_key(key) and override.value and not override.value.startswith("${"):
            raise click.UsageError(
                f"{override.path}: its value would stand in the script. Put it into an environment variable, "
                f"write '{override.path}=${{NAME}}', and name the variable in slurm.pass_environment."
            )


@launch.command(context_settings=OVERRIDES_AS_ARGUMENTS)
@config_arguments
@click.option("--dry-run", is_flag=True, help="Print the script; submit nothing.")
def slurm(config: str, overrides: tuple[str, ...], *, dry_run: bool, **allowed: object) -> int:
    """Submit CONFIG as a Slurm job; its `slurm:` section describes the job.

    Example: automodel-recipes launch slurm config.yaml slurm.nodes=2 --dry-run
    """
    from automodel_recipes.launch.slurm import SlurmConfig, VolumeMapping, render_script, submit_slurm_job

    node = read_config(config, overrides, **allowed)  # type: ignore[arg-type]
    keys = node.get("slurm").to_dict() if node.get("slurm") is not None else {}
    keys["extra_mounts"] = tuple(VolumeMapping(**mount) for mount in keys.get("extra_mounts", ()))
    if "pass_environment" in keys:
        keys["pass_environment"] = tuple(keys["pass_environment"])
    try:
        job = SlurmConfig(**keys)
    except (TypeError, ValueError) as error:
        raise node.error("slurm", str(error)) from None
    _refuse_secrets(overrides)
    words = [word for word in overrides if not word.lstrip("-").startswith("slurm.")]
    script = render_script(job, ["train", str(Path(config).resolve()), *words, "--resume", "auto"])
    if dry_run:
        click.echo(script, nl=False)
        return 0
    path = Path(f"{Path(config).stem}.sbatch")
    path.write_text(script, encoding="utf-8")
    click.echo(f"submitted job {submit_slurm_job(path)} from {path}")
    return 0

"""A Slurm job for a configuration: rendered from checked values, submitted through ``sbatch``.

Nothing from the configuration reaches a shell unquoted, and no secret is written: tokens travel in the environment.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from automodel_recipes.errors import RecipeError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+:=,@-]*")
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")


@dataclass(frozen=True)
class VolumeMapping:
    """A directory of the host that the container sees."""

    source: str
    dest: str


@dataclass(frozen=True)
class SlurmConfig:
    """One job: its resources, its container, and how processes find one another.

    Raises: ValueError: a value that Slurm or a shell could misread.
    """

    job_name: str = "automodel"
    nodes: int = 1
    ntasks_per_node: int = 8
    """Processes on each node."""
    time: str = "04:00:00"
    """Limit as ``[days-]hours:minutes:seconds``."""
    account: str | None = None
    partition: str | None = None
    gpus_per_node: int | None = None
    container_image: str | None = None
    """Image for pyxis (``srun --container-image``); None runs on the host."""
    extra_mounts: tuple[VolumeMapping, ...] = ()
    hf_home: str | None = None
    """Cache of hub downloads, exported as ``HF_HOME``."""
    chdir: str | None = None
    """Working directory of the job; relative paths in the configuration start there."""
    master_port: int = 13742
    requeue: bool = True
    """Run again after preemption; the job goes on from its newest checkpoint."""
    signal_before_end_s: int = 120
    """Seconds before the time limit at which Slurm sends SIGUSR1, so that a checkpoint is written."""
    pass_environment: tuple[str, ...] = field(default=("HF_TOKEN", "WANDB_API_KEY"))
    """Variables handed to the job from the submitting shell, by name; their values are never written."""

    def __post_init__(self) -> None:
        for name in ("job_name", "account", "partition"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise ValueError(f"slurm.{name}={value!r}: letters, digits and _ . + : = , @ - are allowed.")
        if not _TIME.fullmatch(self.time):
            raise ValueError(f"slurm.time={self.time!r}: write [days-]hours:minutes:seconds, such as 04:00:00.")
        for name in ("nodes", "ntasks_per_node", "master_port"):
            if getattr(self, name) < 1:
                raise ValueError(f"slurm.{name}={getattr(self, name)}: it must be at least 1.")
        for name in ("container_image", "hf_home", "chdir"):
            _check_line(f"slurm.{name}", getattr(self, name))
        for mount in self.extra_mounts:
            for part in (mount.source, mount.dest):
                _check_line("slurm.extra_mounts", part)
                if ":" in part or "," in part:
                    raise ValueError(f"slurm.extra_mounts: {part!r} holds ':' or ',', which separate mounts.")
        for variable in self.pass_environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
                raise ValueError(f"slurm.pass_environment: {variable!r} is not the name of a variable.")


def _check_line(name: str, value: str | None) -> None:
    if value is not None and any(not c.isprintable() for c in value):
        raise ValueError(f"{name}={value!r}: control characters and line breaks are not allowed.")


def render_script(slurm: SlurmConfig, arguments: Sequence[str]) -> str:
    """The batch script that runs ``automodel-recipes ARGUMENTS`` in every task.

    Args:
        slurm: the job.
        arguments: words of the command, e.g. ``["train", "my config.yaml", "--resume", "auto"]``.
    """
    command = shlex.join(["automodel-recipes", *arguments])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(slurm)),
        "set -euo pipefail",
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        f"export MASTER_PORT={slurm.master_port}",
    ]
    if slurm.hf_home is not None:
        lines.append(f"export HF_HOME={shlex.quote(slurm.hf_home)}")
    # Each task names its rank as torch expects it; the single quotes keep the variables for the task's own shell.
    ranks = "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    lines.append(f"srun {_srun_options(slurm)}bash -c {shlex.quote(f'{ranks}; exec {command}')}")
    return "\n".join(lines) + "\n"


def _options(slurm: SlurmConfig) -> list[str]:
    exported = ",".join(("PATH", "HOME", "USER", *slurm.pass_environment))
    options = [
        f"--job-name={slurm.job_name}",
        f"--nodes={slurm.nodes}",
        f"--ntasks-per-node={slurm.ntasks_per_node}",
        f"--time={slurm.time}",
        f"--signal=USR1@{slurm.signal_before_end_s}",
        f"--export={exported}",
        "--open-mode=append",
    ]
    for name in ("account", "partition"):
        if (value := getattr(slurm, name)) is not None:
            options.append(f"--{name}={value}")
    if slurm.gpus_per_node is not None:
        options.append(f"--gpus-per-node={slurm.gpus_per_node}")
    if slurm.chdir is not None:
        options.append(f"--chdir={shlex.quote(slurm.chdir)}")
    if slurm.requeue:
        options.append("--requeue")
    return options


def _srun_options(slurm: SlurmConfig) -> str:
    words = ["--kill-on-bad-exit=1"]
    if slurm.container_image is not None:
        words.append(f"--container-image={slurm.container_image}")
        if slurm.extra_mounts:
            words.append("--container-mounts=" + ",".join(f"{m.source}:{m.dest}" for m in slurm.extra_mounts))
    return shlex.join(words) + " "


def submit_slurm_job(script: Path) -> str:
    """Hand a script to ``sbatch``; returns the job's id.

    Raises: RecipeError: there is no ``sbatch`` here, or it refused the job (its own words are given).
    """
    if shutil.which("sbatch") is None:
        raise RecipeError("sbatch is not on this machine. Run this on a login node, or print the script by --dry-run.")
    done = subprocess.run(["sbatch", "--parsable", str(script)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RecipeError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]

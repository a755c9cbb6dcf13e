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

from automodel_core.config import ConfigNode
from automodel_recipes.errors import RecipeError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+:=,@-]*")
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")


class NoSchedulerError(RecipeError):
    """The scheduler's commands are not on this machine."""

    exit_code = 2


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
    output: str | None = None
    """File of the job's output; ``%j`` is the job's number. None leaves it to Slurm."""
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
        for name in ("container_image", "hf_home", "chdir", "output"):
            _check_line(f"slurm.{name}", getattr(self, name))
        for mount in self.extra_mounts:
            for part in (mount.source, mount.dest):
                _check_line("slurm.extra_mounts", part)
                if ":" in part or "," in part:
                    raise ValueError(f"slurm.extra_mounts: {part!r} holds ':' or ',', which separate mounts.")
        for variable in self.pass_environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
                raise ValueError(f"slurm.pass_environment: {variable!r} is not the name of a variable.")


# What a task's own shell runs: it names the rank as torch expects it, and outlives signals that are meant for training.
# srun returns the largest code of all tasks, and ends the others when one fails, by a signal (143). So failures go
# above 200 for the way through srun: a crash must not look like a preemption, which is queued again.
_TASK = (
    "trap : TERM USR1; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; {command}; "
    "code=$?; case $code in 0|138|143) exit $code;; esac; [ $code -lt 55 ] && exit $((200 + code)); exit 255"
)
# 138 and 143: stopped by USR1 or TERM, with a checkpoint. A job that was cancelled is not RUNNING any more.
_REQUEUE = [
    'if [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; then',
    '  if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then',
    '    echo "automodel: stopped with exit code $code; queued again"',
    '    scontrol requeue "$SLURM_JOB_ID"',
    "  fi",
    "fi",
]


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
        "set -uo pipefail",
        # Tasks get these signals too and save a checkpoint; the script lives on to see how they end.
        "trap : TERM USR1",
        'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" || exit 1',
        "export MASTER_ADDR",
        f"export MASTER_PORT={slurm.master_port}",
    ]
    if slurm.hf_home is not None:
        lines.append(f"export HF_HOME={shlex.quote(slurm.hf_home)}")
    task = shlex.quote(_TASK.replace("{command}", command))
    lines += [
        "code=0",
        f"srun {_srun_options(slurm)}bash -c {task} || code=$?",
        '[ "$code" -gt 200 ] && [ "$code" -lt 255 ] && code=$((code - 200))',
    ]
    if slurm.requeue:
        lines += _REQUEUE
    return "\n".join([*lines, 'exit "$code"']) + "\n"


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
    for name in ("chdir", "output"):
        if (value := getattr(slurm, name)) is not None:
            options.append(f"--{name}={shlex.quote(value)}")
    if slurm.requeue:
        options.append("--requeue")
    return options


def _srun_options(slurm: SlurmConfig) -> str:
    # sbatch's --export would hide what the script itself exports from the tasks.
    words = ["--export=ALL", "--kill-on-bad-exit=1"]
    if slurm.container_image is not None:
        words.append(f"--container-image={slurm.container_image}")
        if slurm.extra_mounts:
            words.append("--container-mounts=" + ",".join(f"{m.source}:{m.dest}" for m in slurm.extra_mounts))
    return shlex.join(words) + " "


def slurm_job(config: ConfigNode) -> SlurmConfig:
    """The job that the ``slurm`` section describes.

    Raises: ConfigError: a value that Slurm or a shell could misread, with its place.
    """
    section = config.get("slurm")
    keys = {} if section is None else section.to_dict()
    try:
        keys["extra_mounts"] = tuple(VolumeMapping(**mount) for mount in keys.get("extra_mounts", ()))
        if "pass_environment" in keys:
            keys["pass_environment"] = tuple(keys["pass_environment"])
        return SlurmConfig(**keys)
    except (TypeError, ValueError) as error:
        raise config.error("slurm", str(error)) from None


def job_arguments(config: str | Path, overrides: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The words of ``train`` inside a job: an absolute path, and resuming, since jobs are requeued."""
    return ["train", str(Path(config).resolve()), *job_words(overrides), *options, "--resume", "auto"]


def job_words(overrides: Sequence[str]) -> list[str]:
    """The overrides that concern the run and not the job around it: ``--slurm.nodes 2`` is two words."""
    kept: list[str] = []
    words = iter(overrides)
    for word in words:
        if not word.lstrip("-~").startswith(("slurm.", "kubernetes.")):
            kept.append(word)
        elif word.startswith("--") and "=" not in word:
            next(words, None)
    return kept


def node_commands(slurm: SlurmConfig, arguments: Sequence[str]) -> list[str]:
    """What each node runs, one line a node, for people who look or who start it by hand."""
    command = shlex.join(["automodel-recipes", *arguments])
    tasks = slurm.ntasks_per_node
    return [
        f"node {node}: ranks {node * tasks}-{(node + 1) * tasks - 1} of {slurm.nodes * tasks}: {command}"
        for node in range(slurm.nodes)
    ]


def submit_slurm_job(script: Path) -> str:
    """Hand a script to ``sbatch``; returns the job's id.

    Raises: RecipeError: there is no ``sbatch`` here, or it refused the job (its own words are given).
    """
    if shutil.which("sbatch") is None:
        raise NoSchedulerError(
            f"sbatch is not on this machine; {script} was written and not submitted. Install Slurm's commands "
            "(Debian and Ubuntu: apt-get install slurm-client), or submit the script from a login node."
        )
    done = subprocess.run(["sbatch", "--parsable", str(script)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RecipeError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]

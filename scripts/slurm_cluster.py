"""A Slurm cluster on this machine for as long as a block runs: munged, slurmctld and slurmd, started by hand.

One node with two CPUs, two partitions: a job in ``high`` preempts one in ``low``, which has 60 seconds to leave and is
queued again. Needs root and Debian's ``slurm-wlm`` and ``munge``:

    apt-get install -y --no-install-recommends slurm-wlm munge
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
_CONF = """\
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,preempt_youngest_first
MinJobAge=3600
KillWait=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""


class CannotStart(RuntimeError):
    """Why there is no cluster here."""


@contextlib.contextmanager
def slurm_cluster(home: Path) -> Iterator[dict[str, str]]:
    """Run the three daemons in ``home``; yields the environment in which Slurm's commands find them.

    Raises: CannotStart: programs or rights are missing, or the node does not come up.
    """
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise CannotStart(f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        raise CannotStart("the daemons need root")
    environment = _write_files(home)
    daemons: list[subprocess.Popen] = []
    try:
        for command in _commands(home):
            daemons.append(_start(command, home, environment))
        _wait_until_idle(home, environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def _write_files(home: Path) -> dict[str, str]:
    for folder in ("state", "spool"):
        (home / folder).mkdir(parents=True)
    key = home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    text = _CONF.format(home=home, host=socket.gethostname(), ctld_port=_free_port(), d_port=_free_port())
    (home / "slurm.conf").write_text(text)
    return {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}


def _commands(home: Path) -> list[list[str]]:
    munge = [f"--{name}-file={home}/munge.{ending}" for name, ending in (("pid", "pid"), ("log", "log"))]
    munge += [f"--key-file={home}/munge.key", f"--socket={home}/munge.socket", f"--seed-file={home}/munge.seed"]
    return [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-i", "-c"],
        ["slurmd", "-D", "-c"],
    ]


def _start(command: list[str], home: Path, environment: dict[str, str]) -> subprocess.Popen:
    with (home / f"{command[0]}.out").open("w") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    time.sleep(1.0)
    if started.poll() is not None:
        raise CannotStart(f"{command[0]} ended at once: {(home / f'{command[0]}.out').read_text()[-400:]}")
    return started


def _wait_until_idle(home: Path, environment: dict[str, str], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    state = ""
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T", "-p", "low"], env=environment, capture_output=True, text=True, timeout=30
        )
        if (state := done.stdout.strip() or done.stderr.strip()) == "idle":
            return
        time.sleep(1.0)
    raise CannotStart(f"the node stayed {state!r}; {(home / 'slurmd.out').read_text()[-400:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

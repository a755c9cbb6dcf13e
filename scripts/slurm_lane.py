"""A real Slurm job: two tasks train the demo, are preempted, queued again, and finish what they began.

    python scripts/slurm_lane.py [--log FILE]

Starts a cluster of this one machine (see ``slurm_cluster.py``), submits the demo through its ``slurm:`` section, lets a
job of higher priority take the node, and checks that the demo saved a checkpoint, came back, resumed it and ended.
Prints ``skipped: REASON`` and exits with 0 where no cluster can be started.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from slurm_cluster import CannotStart, slurm_cluster

MAX_STEPS = 40
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="where the job's own log is copied to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-lane-") as folder:
        work = Path(folder)
        try:
            with slurm_cluster(work / "cluster") as environment:
                log = run(work, environment)
        except CannotStart as reason:
            print(f"skipped: {reason}")
            return 0
        if arguments.log is not None:
            arguments.log.write_text(anonymous(log, work))
    print("passed: preempted, queued again, resumed, finished")
    return 0


def run(work: Path, environment: dict[str, str]) -> str:
    """Submit, preempt, wait; returns the job's log."""
    job = submit(work, environment)
    metrics = work / "run" / "metrics.jsonl"
    wait_for(lambda: last_step(metrics) >= 3, "the third step", 240, show=work / "job.log")
    preemptor = slurm(["sbatch", "--parsable", "-p", "high", "-n", "2", "--wrap", "sleep 3"], work, environment)
    print(f"job {job} trains; job {preemptor} takes its node")
    wait_for(lambda: restarts(job, work, environment) == 1, "the job to be queued again", 180, show=work / "job.log")
    stopped_at = last_step(metrics)
    wait_for(lambda: state(job, work, environment) == "COMPLETED", "the job to end", 420, show=work / "job.log")
    check(work, stopped_at)
    return (work / "job.log").read_text()


def submit(work: Path, environment: dict[str, str]) -> str:
    """``train`` on a configuration with a ``slurm`` section; returns the job's number."""
    config = yaml.safe_load((ROOT / "examples/llm/demo_lora.yaml").read_text())
    config["step_scheduler"] |= {"local_batch_size": 16, "max_steps": MAX_STEPS, "ckpt_every_steps": 1000}
    config["step_scheduler"] |= {"val_every_steps": 1000}
    config["evaluation"] = {"exact_match": False, "at_start": False}
    config["validation_dataset"]["limit_dataset_samples"] = 32
    config["checkpoint"]["checkpoint_dir"] = str(work / "run")
    config["slurm"] = {"job_name": "demo", "ntasks_per_node": 2, "time": "00:30:00", "partition": "low"}
    config["slurm"] |= {"pass_environment": ["HF_HUB_OFFLINE", "OMP_NUM_THREADS", "SLURM_CONF"]}
    config["slurm"] |= {"chdir": str(work), "output": str(work / "job.log")}
    (work / "demo job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    said = slurm([sys.executable, "-m", "automodel_recipes", "train", "demo job.yaml"], work, environment)
    print(said)
    found = re.search(r"submitted job (\d+)", said)
    assert found is not None, said
    return found.group(1)


def check(work: Path, stopped_at: int) -> None:
    """One curve without a gap, of both lives of the job."""
    log = (work / "job.log").read_text()
    assert "stopped with exit code 143; queued again" in log, log[-3000:]
    rows = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, MAX_STEPS + 1)), steps
    (resumed,) = [row for row in rows if row["kind"] == "resume"]
    assert resumed["step"] == stopped_at < MAX_STEPS, (resumed, stopped_at)
    assert json.loads((work / "run/run.json").read_text())["world_size"] == 2
    print(f"resumed at step {stopped_at} of {MAX_STEPS}")


def last_step(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip().endswith("}")]
    return max((row["step"] for row in rows if row["kind"] == "train"), default=0)


def state(job: str, work: Path, environment: dict[str, str]) -> str:
    return field(job, "JobState", work, environment)


def restarts(job: str, work: Path, environment: dict[str, str]) -> int:
    return int(field(job, "Restarts", work, environment) or 0)


def field(job: str, name: str, work: Path, environment: dict[str, str]) -> str:
    found = re.search(rf"\b{name}=(\S+)", slurm(["scontrol", "show", "job", job], work, environment))
    return found.group(1) if found else ""


def slurm(command: list[str], work: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def wait_for(condition: Any, what: str, seconds: float, *, show: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            log = show.read_text()[-3000:] if show.exists() else "no log"
            raise RuntimeError(f"waited {seconds:.0f} s for {what}\n{log}")
        time.sleep(0.5)


def anonymous(log: str, work: Path) -> str:
    """The log without this machine's paths."""
    log = re.sub(r"Loading weights:.*\n?|.*Warning: .*\n  .*\n", "", log)
    for path, name in ((str(work), "WORK"), (str(ROOT), "REPOSITORY"), (os.uname().nodename, "node")):
        log = re.sub(rf"(?<![\w-]){re.escape(path)}(?![\w-])", name, log)
    return re.sub(r"slurmstepd-\w+", "slurmstepd-node", re.sub(r"\n{3,}", "\n\n", log))


if __name__ == "__main__":
    sys.exit(main())

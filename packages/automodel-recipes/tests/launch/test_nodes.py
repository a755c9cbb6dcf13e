import json
import os
import shlex
import socket
import subprocess
import sys

import pytest

from automodel_recipes.cli.app import main
from automodel_recipes.shipped import find_shipped


def test_the_command_of_every_machine_is_printed(capsys, tmp_path):
    config = tmp_path / "my $(touch pwned).yaml"
    config.write_text(find_shipped("demo_lora").path.read_text())
    words = ["--nnodes", "2", "--nproc-per-node", "4", "--master-addr", "host0", "seed=3"]
    assert main(["launch", "nodes", str(config), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["node 0", "node 1"]
    command = shlex.split(lines[1].partition(":")[2])
    assert command[:5] == ["automodel-recipes", "launch", "nodes", str(config), "seed=3"]
    assert command[-1] == "--node-rank=1"


@pytest.mark.parametrize("address", ["a; b", "$(x)", "-x", "a b"])
def test_hostile_addresses_are_refused(address, capsys):
    assert main(["launch", "nodes", str(find_shipped("demo_lora").path), f"--master-addr={address}"]) == 2
    assert "host name" in capsys.readouterr().err


@pytest.mark.more
def test_two_machines_train_one_run(tmp_path):
    """Two launchers on this host, each with one process, as two machines would run them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "automodel_recipes", "launch", "nodes", str(find_shipped("demo_full").path)]
    words = ["step_scheduler.max_steps=2", "step_scheduler.local_batch_size=16", "dataset.limit_dataset_samples=64"]
    words += ["checkpoint.checkpoint_dir=run", "evaluation.exact_match=false", "evaluation.at_start=false"]
    words += ["lr_scheduler.lr_warmup_steps=1", "--nnodes=2", f"--master-port={port}"]
    machines = [
        subprocess.Popen(
            [*command, *words, f"--node-rank={rank}"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    assert [machine.wait(300) for machine in machines] == [0, 0]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["world_size"], record["summary"]["steps"]) == (2, 2)

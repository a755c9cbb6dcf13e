"""What ends a run of several processes: a rank that never comes, and one that dies in the middle of a step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROWS = """
import os

class Rows:
    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.asked += 1
        if os.environ.get("RANK") == "1" and self.asked > 16 + 4:  # after the count of tokens, in the second step
            os._exit(9)
        return {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
"""


def start(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "automodel_recipes", "train", str(path), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.more
def test_a_rank_that_never_comes_is_named(tiny_config, write_yaml, tmp_path: Path) -> None:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    config = {**tiny_config, "dist_env": {"rendezvous_timeout_s": 3}, "checkpoint": {"checkpoint_dir": str(tmp_path)}}
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    done = start(write_yaml(config), **place)
    assert done.returncode != 0
    assert "rank 1 of 2 missing at the rendezvous after 3 s (present: 0 on " in done.stderr


@pytest.mark.more
@pytest.mark.parametrize("distributed", [{"strategy": "ddp"}, {"strategy": "fsdp2", "tp_size": 2}], ids=["ddp", "tp"])
def test_a_rank_that_dies_mid_step_ends_the_run(tiny_config, write_yaml, tmp_path: Path, distributed) -> None:
    (tmp_path / "rows.py").write_text(ROWS)
    config = {
        **tiny_config,
        "dataset": {"_target_": f"{tmp_path}/rows.py:Rows"},
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 2, "num_epochs": 2},
        "distributed": distributed,
        "dist_env": {"timeout_minutes": 0.5},
        "checkpoint": {"checkpoint_dir": str(tmp_path / "run"), "enabled": False},
    }
    started = time.monotonic()
    done = start(write_yaml(config), "--nproc-per-node", "2", "--allow-target", f"{tmp_path}/rows.py")
    assert done.returncode == 9, done.stdout + done.stderr
    assert "rank 1 ended with exit code 9" in done.stderr
    assert time.monotonic() - started < 120

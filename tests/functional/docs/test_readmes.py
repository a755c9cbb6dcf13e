"""The Python blocks of READMEs and pages that stand on their own run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Blocks of the other packages' READMEs run in those packages' own tests, where they need fixtures.
PAGES = [*(ROOT / f"packages/automodel-{name}/README.md" for name in ("core", "recipes"))]
PAGES += [ROOT / f"docs/{name}.md" for name in ("configuration", "steps")]
BLOCKS = [
    pytest.param(block, id=f"{page.parent.name}-{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


@pytest.mark.more
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_as_printed(block, tmp_path):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]

"""The code blocks of the documentation run, in the order of their page, as a reader would run them.

A line ``<!-- not run: REASON -->`` right before a block leaves it out, ``<!-- long -->`` moves its page's whole run to
the long lane. YAML blocks must use sections that exist; JSON and TOML must parse.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from automodel_recipes.schema import RECIPES, find_section

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "packages/automodel-recipes/README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TINY = ROOT / "packages/automodel-recipes/src/automodel_recipes/assets"

# `pip install` is proved by the lane of the wheels; here it only must name packages of ours.
PIP = r"""pip() {
  for word in "${@:2}"; do
    case "$word" in automodel-*|-*) ;; *) echo "not a package of ours: $word" >&2; return 1;; esac
  done
}
"""


TRL = """
model_name_or_path: ./model
dataset_name: ./rows.jsonl
learning_rate: 1.0e-4
use_peft: true
lora_r: 8
"""


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    code: str

    @property
    def is_run(self):
        return self.language in ("bash", "python") and not self.mark.startswith("not run: ")


def blocks(page):
    return [Block(mark, language, code) for mark, language, code in BLOCK.findall(page.read_text())]


def name(page):
    return str(page.relative_to(ROOT))


def pages(*, long):
    """Pages with something to run, in the lane that a long block decides."""
    for page in PAGES:
        run = [block for block in blocks(page) if block.is_run]
        if run and any(block.mark == "long" for block in run) == long:
            yield pytest.param(page, id=name(page))


@pytest.fixture
def reader(tmp_path):
    """A directory with what the pages presume: a model, rows of one's own, and the repository's folders."""
    for folder in ("scripts", "benchmarks", "examples", "packages", "tests", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(TINY / "tiny_llama", tmp_path / "model")
    rows = (TINY / "orders/train.jsonl").read_text().splitlines()
    for file in ("my.jsonl", "rows.jsonl", "train.jsonl"):
        (tmp_path / file).write_text("\n".join(rows[:64]) + "\n")
    (tmp_path / "held_out.jsonl").write_text("\n".join(rows[64:96]) + "\n")
    (tmp_path / "theirs.yaml").write_text(TRL)
    return tmp_path


def run_page(page, folder):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    for block in blocks(page):
        if not block.is_run:
            continue
        bash = ["bash", "-euo", "pipefail", "-c", PIP + block.code]
        command = bash if block.language == "bash" else [sys.executable, "-c", block.code]
        done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{block.code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.more
@pytest.mark.parametrize("page", pages(long=False))
def test_a_page_runs_as_printed(page, reader):
    run_page(page, reader)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", pages(long=True))
def test_a_long_page_runs_as_printed(page, reader):
    run_page(page, reader)


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_a_block_that_is_not_run_says_why(page):
    for block in blocks(page):
        assert block.mark in ("", "long") or re.match(r"not run: \S+ \S+", block.mark), block.mark


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_data_blocks_parse(page):
    for block in blocks(page):
        if block.mark.startswith("not run: "):
            continue
        if block.language == "yaml":
            check_sections(yaml.safe_load(block.code))
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "json":
            json.loads(block.code)


def check_sections(config):
    """Top-level keys are sections of some recipe, but for what the loader itself reads."""
    for key in set(config) - {"includes"}:
        assert any(find_section(recipe, key) is not None for recipe in RECIPES), f"no recipe has a section {key!r}"

"""Runs of a recipe that are stopped, killed and resumed, and what is compared between them."""

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.errors import Interrupted
from automodel_recipes.loggers.jsonl import read_jsonl

KEYS = ("loss", "grad_norm", "lr")
LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8, "dropout": 0.1}


class _StopsAfter(LLMFinetuneRecipe):
    """Behaves as if SIGTERM came during step ``stop_after``."""

    stop_after = 0

    def forward_loss(self, batch, num_targets):
        if self.step_scheduler.step >= self.stop_after:
            self.stop.signal_number = signal.SIGTERM
        return super().forward_loss(batch, num_targets)


def run(config: dict[str, Any], *, resume: str = "never", stop_after: int | None = None) -> LLMFinetuneRecipe:
    """Train to the end, or until ``stop_after`` steps are done; then `Interrupted` is raised."""
    kind = LLMFinetuneRecipe if stop_after is None else _StopsAfter
    recipe = kind(config_from_dict(config), TrainOptions(resume=resume, quiet=True))
    if stop_after is not None:
        recipe.stop_after = stop_after
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    return recipe


def trace(recipe: LLMFinetuneRecipe) -> dict[int, list[str]]:
    """Step -> every number as hex; a step that ran twice keeps the later one."""
    rows = [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train"]
    return {row["step"]: [float(row[key]).hex() for key in KEYS] for row in rows}


def weights_hash(recipe: LLMFinetuneRecipe) -> str:
    """A digest of every bit of the final weights, adapters included."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(recipe.unwrapped().state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def stopped_and_resumed(config: dict[str, Any], tmp_path: Path, stops: list[int]) -> LLMFinetuneRecipe:
    """Stop after each of these steps, resume after each stop, and train to the end."""
    config = in_directory(config, tmp_path / "stopped")
    resume = "never"
    for stop in stops:
        with pytest.raises(Interrupted) as caught:
            run(config, resume=resume, stop_after=stop)
        assert caught.value.exit_code == 128 + signal.SIGTERM
        resume = "auto"
    return run(config, resume="auto")


def killed_and_resumed(config: dict[str, Any], tmp_path: Path, after: int) -> LLMFinetuneRecipe:
    """Kill a run by SIGKILL once step ``after`` is on disk, then resume it and train to the end."""
    config = in_directory(config, tmp_path / "killed")
    config["step_scheduler"]["ckpt_every_steps"] = 1
    pid = os.fork()
    if pid == 0:
        try:
            run(config)
        finally:
            os._exit(1)  # too late to be killed
    end = time.monotonic() + 120
    while not list((tmp_path / "killed").glob(f"step-{after:08d}")) and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return run(config, resume="auto")


def in_directory(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A copy of a configuration with another run directory."""
    config = copy.deepcopy(config)
    config["checkpoint"]["checkpoint_dir"] = str(directory)
    return config

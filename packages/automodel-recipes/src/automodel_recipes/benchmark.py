"""The speed of a configuration: warm-up, then timed steps of the recipe itself, as one row of numbers."""

import datetime
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes.batches import Batch, count_tokens
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.flops import FORMULA, device_peak, model_flops, sequence_lengths
from automodel_recipes.gpus import recognise_gpu
from automodel_recipes.options import TrainOptions
from automodel_recipes.plan.inputs import planned_rows
from automodel_recipes.plan.weightless import without_weights
from automodel_recipes.run import configured_recipe
from automodel_recipes.train_step import train_step
from automodel_recipes.versions import installed_versions

FORMAT = 1


@dataclass(frozen=True)
class BenchOptions:
    """How a benchmark is run."""

    name: str
    """What the row is found by when it is compared."""
    warmup: int = 3
    """Steps before the clock runs: compilation, autotuning and allocators settle in them."""
    steps: int = 10
    synthetic: bool = False
    """Random weights and rows of random ids of full length: neither weights nor data nor tokenizer are read."""


def run_benchmark(config: ConfigNode, options: BenchOptions) -> dict[str, Any] | None:
    """Train a few steps and time them; nothing is kept. None on every rank but 0.

    Raises: UnusableInputError: ``synthetic`` for a vision-language recipe, whose rows need a processor.
    """
    directory = _directory()
    recipe: Any = configured_recipe(config)(
        _short(_synthetic(config) if options.synthetic else config, directory, options), TrainOptions(quiet=True)
    )
    if options.synthetic:
        vocabulary = recipe.config.get("dataset.vocab_size")
        recipe.build_tokenizer = lambda: setattr(recipe, "tokenizer", _Ids(vocabulary))
    started = time.monotonic()
    try:
        recipe.setup()
        setup_s = time.monotonic() - started
        measured = _time_steps(recipe, options)
        row = _row(recipe, options, config) | measured | {"setup_s": round(setup_s, 2)}
        return row if recipe.parallel.is_main else None
    finally:
        recipe.close()
        shutil.rmtree(directory, ignore_errors=True)


def _time_steps(r: Any, options: BenchOptions) -> dict[str, Any]:
    windows = _windows(r, options.warmup + options.steps)
    first_s = 0.0
    for index in range(options.warmup):
        warm_s, _ = _timed(r, next(windows))
        first_s = warm_s if index == 0 else first_s
    if r.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(r.device)
    timed = [_timed(r, next(windows)) for _ in range(options.steps)]
    seconds = [one[0] for one in timed]
    counts = torch.tensor([sum(one[1][i] for one in timed) for i in range(3)], dtype=torch.int64, device=r.device)
    tokens, labels, squared = r.parallel.sum_over_data(counts).tolist()
    total = sum(seconds)
    flops = model_flops(r.unwrapped(), r.parallel).of(tokens, squared) / total / r.parallel.world_size
    peak = device_peak(r.device, given=r.config.get("monitoring.peak_tflops"))
    return {
        "status": "ok",
        "first_step_s": round(first_s, 4),
        "step_time_s": {"median": round(statistics.median(seconds), 5), "min": min(seconds), "max": max(seconds)},
        "num_tokens": tokens,
        "tokens_per_s": round(tokens / total, 2),
        "label_tokens_per_s": round(labels / total, 2),
        "flops_per_s_per_device": flops,
        "mfu_percent": None if peak is None else peak.percent(flops),
        "mfu_formula": FORMULA,
        "peak_tflops": None if peak is None else {"value": peak.tflops, "source": peak.source},
        "memory": r.memory.record(),
    }


def _windows(r: Any, number: int) -> Iterator[list[Batch]]:
    given = 0
    for window in r.step_scheduler:
        yield window
        given += 1
    raise UnusableInputError(
        f"the data gave {given} steps, and the benchmark takes {number}. Lower --steps, or take --synthetic rows."
    )


def _timed(r: Any, micro_batches: list[Batch]) -> tuple[float, tuple[int, int, int]]:
    """Seconds of a step with all its device work, and this rank's tokens, label tokens and squared lengths."""
    _synchronize(r)
    start = time.perf_counter()
    with r.memory.watching():
        metrics = train_step(r, micro_batches)
    _synchronize(r)
    seconds = time.perf_counter() - start
    r.watchdog.remember(r.step_scheduler.step, metrics, micro_batches)
    r.watchdog.check(r.watchdog.review(r.parallel, r.loss_scaler))
    lengths = [length for batch in micro_batches for length in sequence_lengths(batch)]
    labels = sum(int((batch["labels"] != -100).sum()) for batch in micro_batches)
    return seconds, (sum(map(count_tokens, micro_batches)), labels, sum(length * length for length in lengths))


def _synchronize(r: Any) -> None:
    if r.device.type in ("cuda", "xpu", "mps"):
        getattr(torch, r.device.type).synchronize()
    r.parallel.barrier()


def _row(r: Any, options: BenchOptions, config: ConfigNode) -> dict[str, Any]:
    cuda = r.device.type == "cuda"
    device_name = torch.cuda.get_device_name(r.device) if cuda else _cpu_name()
    gpu = recognise_gpu(device_name) if cuda else None
    scheduler = r.step_scheduler
    return {
        "format": FORMAT,
        "name": options.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": hashlib.sha256(json.dumps(config.to_dict(raw=True), default=str).encode()).hexdigest()[:12],
        "synthetic": options.synthetic,
        "device": r.device.type,
        "device_name": device_name,
        "gpu": None if gpu is None else gpu.name,
        "threads": torch.get_num_threads(),
        "world_size": r.parallel.world_size,
        "layout": r.parallel.dims.describe(),
        "dtype": str(next(r.unwrapped().parameters()).dtype).removeprefix("torch."),
        "num_parameters": r.built.num_parameters,
        "num_trainable": r.built.num_trainable,
        "batch": {"local": scheduler.local_batch_size, "global": scheduler.global_batch_size},
        "warmup": options.warmup,
        "steps": options.steps,
        "versions": installed_versions(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def _short(config: ConfigNode, directory: Path, options: BenchOptions) -> ConfigNode:
    """The configuration with as many steps as are wanted, without checkpoints, in a directory that goes away."""
    values = config.to_dict()
    values["checkpoint"] = {"enabled": False, "checkpoint_dir": str(directory)}
    scheduler = dict(values.get("step_scheduler") or {})
    scheduler |= {"max_steps": options.warmup + options.steps, "num_epochs": 10_000}
    values["step_scheduler"] = {key: value for key, value in scheduler.items() if not key.endswith("_every_steps")}
    for key in [key for key in values if key.startswith(("validation_", "wandb", "mlflow", "tensorboard", "slurm"))]:
        del values[key]
    # Schedules are made for the length of the whole run.
    for key in ("evaluation", "early_stopping", "lr_scheduler"):
        values.pop(key, None)
    return config_from_dict(values, allow_targets=config.policy.allow_targets)


def _synthetic(config: ConfigNode) -> ConfigNode:
    if str(config.get("recipe", "")).startswith("VLM"):
        raise UnusableInputError(
            "--synthetic makes rows of text, and this recipe trains on images. Use a mock_vlm dataset in the YAML."
        )
    values = without_weights(config).to_dict()
    dimensions = values["model"].get("config")
    if not isinstance(dimensions, dict):
        from automodel_recipes.plan.weightless import model_dimensions

        dimensions = model_dimensions(str(config.path("model.config")))
    length = planned_rows(config).length
    rows = int(config.get("step_scheduler.global_batch_size", 32)) * 4
    values["dataset"] = {
        "_target_": "mock",
        "num_sentences": rows,
        "mean_len": float(length),
        "std_len": 0.0,
        "max_sentence_len": length,
        "vocab_size": dimensions.get("vocab_size") or dimensions["text_config"]["vocab_size"],
        "tokenizer": None,
    }
    return config_from_dict(values, allow_targets=config.policy.allow_targets)


class _Ids:
    """Stands where a tokenizer does, for rows that are ids already."""

    pad_token_id = 0
    eos_token_id = 1
    eos_token: str | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def decode(self, ids: Any, **_: Any) -> str:
        """The numbers themselves."""
        return " ".join(map(str, ids))


def _directory() -> Path:
    """A place that all ranks of this machine name alike."""
    mark = os.environ.get("MASTER_PORT") or str(os.getpid())
    return Path(tempfile.gettempdir()) / f"automodel-bench-{os.getuid()}-{mark}"
